"""Where the models come from that answer: asked of predict once, and remembered."""

import asyncio
import time
from collections import OrderedDict

from functions.proxy.predictor import Answer, Lineage, Predictor

_WAIT_SECONDS = 0.5
_PAUSE_SECONDS = 10.0
_MAX_REMEMBERED = 100

_Key = tuple[str, str | None]


class Lineages:
    """The lineage of each model version and revision that answered lately.

    Predict describes the model of whichever instance is asked: while two revisions share
    the traffic, that may be the other one. So what is not known yet is asked for again,
    at most once in ten seconds, and meanwhile answers go without.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._known: OrderedDict[_Key, Lineage] = OrderedDict()
        self._asked_at: dict[_Key, float] = {}
        self._asking: asyncio.Task[None] | None = None

    async def of(self, answer: Answer) -> Lineage:
        """Return the lineage of the model that gave `answer`, within half a second."""
        key = (answer.model_version, answer.revision)
        known = self._known.get(key)
        if known is not None:
            return known
        now = time.monotonic()
        if now - self._asked_at.get(key, -_PAUSE_SECONDS) < _PAUSE_SECONDS:
            # Those that come while it is being asked wait with the first.
            if self._asking is None:
                return Lineage()
        else:
            self._asked_at = {
                k: at for k, at in self._asked_at.items() if now - at < _PAUSE_SECONDS
            }
            self._asked_at[key] = now
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask())
        await asyncio.wait([self._asking], timeout=_WAIT_SECONDS)
        return self._known.get(key, Lineage())

    async def _ask(self) -> None:
        try:
            model = await self._predictor.model()
            if model is not None:
                self._known[model.model_version, model.revision] = model.manifest
                while len(self._known) > _MAX_REMEMBERED:
                    self._known.popitem(last=False)
        finally:
            self._asking = None
