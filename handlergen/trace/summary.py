"""A few numbers of a trace, counted as its spans pass by."""

from __future__ import annotations

from dataclasses import dataclass, field

from handlergen.recordings import Span
from handlergen.runtime.spans import ON_DEVICE


@dataclass
class DeviceUse:
    """How a device was used. Spans must come by their start.

    Attributes:
        predicts: How often predict ran.
        total_ns: The time they took together.
        busy_ns: Time during which at least one ran; as much as `total_ns` when none overlap.
        overlaps: How often one started while another one ran: never, with `lock: device`.
    """

    predicts: int = 0
    total_ns: int = 0
    busy_ns: int = 0
    overlaps: int = 0
    _until_ns: int = field(default=0, repr=False)

    def add(self, span: Span) -> None:
        """One more predict."""
        self.predicts += 1
        self.total_ns += span.end_ns - span.start_ns
        self.overlaps += span.start_ns < self._until_ns
        self.busy_ns += max(0, span.end_ns - max(span.start_ns, self._until_ns))
        self._until_ns = max(self._until_ns, span.end_ns)


@dataclass
class Summary:
    """What a trace shows.

    Attributes:
        requests: Answered requests (whose `encode` is in it).
        spans: All slices of the workers' rows.
        start_ns, end_ns: First start and last end, `time.monotonic_ns()`.
        pids: Of the processes.
        devices: By key.
        torn: Lines that killed workers left unfinished; left out.
        backwards: Spans that end before they start; left out.
    """

    requests: int = 0
    spans: int = 0
    start_ns: int = 0
    end_ns: int = 0
    pids: set[int] = field(default_factory=set)
    devices: dict[str, DeviceUse] = field(default_factory=dict)
    torn: int = 0
    backwards: int = 0

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    def busy_share(self, device: str) -> float:
        """The part of the time, 0..1, during which the device predicted."""
        return self.devices[device].busy_ns / max(1, self.end_ns - self.start_ns)

    def add(self, span: Span) -> None:
        """One more span."""
        self.start_ns = min(self.start_ns, span.start_ns) if self.spans else span.start_ns
        self.end_ns = max(self.end_ns, span.end_ns)
        self.spans += 1
        self.pids.add(span.pid)
        self.requests += span.stage == "encode"
        if span.stage in ON_DEVICE:
            self.devices.setdefault(span.device, DeviceUse()).add(span)
