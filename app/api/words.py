"""What a payer reads, in English, French and Kinyarwanda, and which of them a browser asks for (RFC 9110, 12.5.4)."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Words:
    """One language's words. `{merchant}` is filled in."""

    language: str
    thousands: str
    amount: str
    merchant: str
    waiting: str
    approve: str
    goes_on: str
    later: str
    go_on: str
    not_valid: str
    see_merchant: str
    over: str
    moment: str
    nothing_lost: str


ENGLISH: Final = Words(
    language="en",
    thousands=",",
    amount="Amount",
    merchant="Merchant",
    waiting="Waiting for your payment",
    approve="If your phone or your bank asks you to, approve the payment there.",
    goes_on="This page goes on by itself as soon as the payment is finished.",
    later="This is taking longer than usual. You can go back to {merchant}, who will learn how the payment ends.",
    go_on="Go on to {merchant}",
    not_valid="This link is not valid",
    see_merchant="Go back to the merchant's site and look at your order there.",
    over="This payment is over",
    moment="One moment, please",
    nothing_lost="Your payment cannot be looked at just now. Nothing is lost, and this page tries again by itself.",
)
FRENCH: Final = Words(
    language="fr",
    thousands="\u202f",
    amount="Montant",
    merchant="Commerçant",
    waiting="En attente de votre paiement",
    approve="Si votre téléphone ou votre banque vous demande de valider le paiement, faites-le.",
    goes_on="Cette page continue d'elle-même dès que le paiement est terminé.",
    later="C'est plus long que d'habitude. Vous pouvez retourner chez {merchant}, qui saura comment le paiement se "
    "termine.",
    go_on="Continuer vers {merchant}",
    not_valid="Ce lien n'est pas valable",
    see_merchant="Retournez sur le site du commerçant et consultez-y votre commande.",
    over="Ce paiement est terminé",
    moment="Un instant, s'il vous plaît",
    nothing_lost="Votre paiement ne peut pas être consulté pour l'instant. Rien n'est perdu, et cette page réessaie "
    "d'elle-même.",
)
KINYARWANDA: Final = Words(
    language="rw",
    thousands=",",
    amount="Amafaranga",
    merchant="Umucuruzi",
    waiting="Dutegereje ubwishyu bwawe",
    approve="Niba telefone yawe cyangwa banki yawe ibigusabye, emeza ubwishyu.",
    goes_on="Iyi paji irakomeza ubwayo ubwishyu nibumara kurangira.",
    later="Biratinze kurusha ibisanzwe. Ushobora gusubira kuri {merchant}, bazamenya uko ubwishyu burangiye.",
    go_on="Komeza kuri {merchant}",
    not_valid="Aho ugana ntihabonetse",
    see_merchant="Subira ku rubuga rw'umucuruzi urebereho ibyo waguze.",
    over="Ubu bwishyu bwararangiye",
    moment="Tegereza gato",
    nothing_lost="Ubu ntitubashije kureba ubwishyu bwawe. Nta cyatakaye, kandi iyi paji irongera kugerageza ubwayo.",
)
_LANGUAGES: Final = {words.language: words for words in (ENGLISH, FRENCH, KINYARWANDA)}
_LONGEST: Final = 500


def asked_for(accept_language: str) -> Words:
    """Return the words of the language that a browser likes best, English where it names none of ours."""
    wishes = [_wish(part) for part in accept_language[:_LONGEST].split(",")]
    ours = [(weight, language) for language, weight in wishes if weight > 0 and language in _LANGUAGES]
    best = max(ours, key=lambda wish: wish[0], default=(1.0, "en"))  # of equals the first
    return _LANGUAGES[best[1]]


def _wish(part: str) -> tuple[str, float]:
    """Return a language without its region, and how much it is wished for."""
    tag, _, weight = part.partition(";")
    try:
        wished = float(weight.strip().lower().removeprefix("q=") or 1)
    except ValueError:
        wished = 0.0
    return tag.strip().lower().split("-")[0], wished
