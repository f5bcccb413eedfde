"""Saved cards over REST: a page to save one, and the list of them. Answers are not to be cached by anybody."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.context import Parts, TokenWriter
from app.api.problems import documented, everywhere
from app.api.schemas import Email, Line, Msisdn
from app.kpay.cards import Card

router = APIRouter(
    prefix="/v1",
    tags=["tokens"],
    responses=everywhere() | documented("gateway_refused", "gateway_timeout", "unavailable", "gateway_unreachable"),
)


class TokenRequest(BaseModel):
    """Whose card is to be saved."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    msisdn: Msisdn = Field(
        description="The payer's phone number: saved cards are found by it", examples=["250788312934"]
    )
    email: Email = Field(description="The payer's e-mail address", examples=["ikaneza@example.rw"])
    cusname: Line = Field(max_length=100, description="The payer's name", examples=["KANEZA Innocent"])


class TokenPageBody(BaseModel):
    """A page at K-Pay where the payer saves a card."""

    refid: str = Field(description="Made here; it names this request at K-Pay", examples=["0JT5C9DMM4R2PDLNHLFNPQPC"])
    tid: str | None = Field(description="K-Pay's own reference", examples=["TK31593123161"])
    url: str = Field(
        description="Send the payer's browser here", examples=["https://pay.esicia.rw/token/TK31593123161"]
    )


class TokenQuery(BaseModel):
    """Whose cards are wanted."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    msisdn: Msisdn = Field(description="The payer's phone number", examples=["250788312934"])


class CardBody(BaseModel):
    """A saved card."""

    cardhash: str = Field(description="The card's number, masked", examples=["555555xxxxxx4444"])
    scheme: str = Field(description="Whose card it is", examples=["MASTERCARD"])
    token: str = Field(
        description="Pays by it, together with the `cvv`. Two cards of a payer may share one: K-Pay chooses then",
        examples=["7dc23f6e-00ae-473a-bb9f-b95b8d79bc85"],
    )

    @classmethod
    def of(cls, card: Card) -> "CardBody":
        """Return a card as callers see it."""
        return cls(cardhash=card.cardhash, scheme=card.scheme, token=card.token)


class CardList(BaseModel):
    """A payer's saved cards."""

    items: list[CardBody] = Field(description="The cards, as K-Pay lists them")


@router.post(
    "/tokens", status_code=201, operation_id="add_token", response_description="The page to send the payer's browser to"
)
async def add(body: TokenRequest, parts: Parts, _: TokenWriter, response: Response) -> TokenPageBody:
    """Get a page at K-Pay where a payer saves a card. Asking again does no harm: it is another page."""
    response.headers["Cache-Control"] = "no-store"
    page = await parts.tokens.add(body.msisdn, body.email, body.cusname)
    return TokenPageBody(refid=page.refid, tid=page.tid, url=page.url)


@router.get("/tokens", operation_id="list_tokens", response_description="The saved cards; none is an empty list")
async def list_tokens(
    wanted: Annotated[TokenQuery, Query()], parts: Parts, _: TokenWriter, response: Response
) -> CardList:
    """List the cards that K-Pay keeps for a payer. Their tokens are kept nowhere here."""
    response.headers["Cache-Control"] = "no-store"
    return CardList(items=[CardBody.of(card) for card in await parts.tokens.saved(wanted.msisdn)])
