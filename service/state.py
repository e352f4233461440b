"""What a running app holds, from the start of its lifespan to the end."""

from dataclasses import dataclass

from anyio import CapacityLimiter

from service.admission import Admission
from service.metrics import Metrics
from service.models import Models
from service.settings import Settings
from service.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The parts that routes work with; `request.state.running`."""

    settings: Settings
    models: Models
    store: Store
    metrics: Metrics
    admission: Admission
    threads: CapacityLimiter
