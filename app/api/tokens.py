"""Saved cards over REST: a page to save one, and the list of them. Answers are not to be cached by anybody."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.context import Parts, TokenWriter
from app.api.problems import documented, everywhere
from app.api.schemas import CardBody, CardList, TokenPageBody, TokenQuery, TokenRequest

router = APIRouter(
    prefix="/v1",
    tags=["tokens"],
    responses=everywhere() | documented("gateway_refused", "gateway_timeout", "unavailable", "gateway_unreachable"),
)


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
