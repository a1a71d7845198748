"""What can be learned, and with what."""

from collections.abc import Iterable
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from service import catalogue
from service.api.answers import answer
from service.api.auth import Reader
from service.api.models import MethodList, MethodView, PartList, PartView
from service.api.openapi import problems, returns

router: Final = APIRouter(prefix="/v1", tags=["catalogue"])


@router.get("/methods", summary="List methods", responses={200: returns(MethodList), **problems()})
async def list_methods(_: Reader) -> Response:
    """List the methods that learn strengths, and which models and regularizers each can take."""
    return answer(
        MethodList(
            [
                MethodView(
                    name=method.entry.name,
                    description=method.entry.description,
                    source=method.entry.source,
                    schema=dict(method.entry.schema),
                    models={model: list(kinds) for model, kinds in method.models.items()},
                )
                for method in catalogue.methods()
            ]
        )
    )


@router.get("/models", summary="List models", responses={200: returns(PartList), **problems()})
async def list_models(_: Reader) -> Response:
    """List the models that can be trained."""
    return answer(PartList([_part(e, catalogue.able_methods(model=e.name)) for e in catalogue.models()]))


@router.get("/regularizers", summary="List regularizers", responses={200: returns(PartList), **problems()})
async def list_regularizers(_: Reader) -> Response:
    """List the regularizers whose strengths can be learned, with the formula of each."""
    found = catalogue.regularizers()
    return answer(PartList([_part(e, catalogue.able_methods(regularizer=e.name)) for e in found]))


@router.get("/losses", summary="List losses", responses={200: returns(PartList), **problems()})
async def list_losses(_: Reader) -> Response:
    """List the losses that models can be trained with."""
    return answer(PartList([_part(entry, catalogue.able_methods()) for entry in catalogue.losses()]))


def _part(entry: catalogue.Entry, methods: Iterable[str]) -> PartView:
    return PartView(
        name=entry.name,
        description=entry.description,
        source=entry.source,
        schema=dict(entry.schema),
        methods=list(methods),
    )
