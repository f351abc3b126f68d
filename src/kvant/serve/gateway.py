"""What every handler of a gateway finds: its settings, models, workers and measurements."""

import asyncio
from dataclasses import dataclass, field

from starlette.requests import Request

from kvant.runtime.plaintext import Controls
from kvant.serve.endpoints import Endpoints
from kvant.serve.keys import Keys
from kvant.serve.library import Library
from kvant.serve.metrics import Metrics
from kvant.serve.scheduler import Scheduler
from kvant.serve.settings import Settings
from kvant.serve.share import SharedBounded


@dataclass(slots=True, kw_only=True)
class Gateway:
    """What every handler finds at `request.app.state.kvant`.

    Attributes:
        settings: What the operator decided.
        endpoints: What can be asked.
        library: Which models there are.
        scheduler: Which are loaded.
        metrics: What is measured.
        keys: Who may come in.
        bounded: Does what clients' bytes could prolong.
        controls: Control tokens of models, by digest.
    """

    settings: Settings
    endpoints: Endpoints
    library: Library
    scheduler: Scheduler
    metrics: Metrics
    keys: Keys
    bounded: SharedBounded
    controls: dict[str, asyncio.Future[Controls]] = field(default_factory=dict)


def gateway(request: Request) -> Gateway:
    """Return the gateway that a request came to."""
    found: Gateway = request.app.state.kvant
    return found
