"""What /metrics tells (Prometheus): requests, tokens, how long clients wait, and who is being answered."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Meters:
    """The numbers of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        model = ["model"]
        self.http = Counter("xwin_http_responses", "HTTP answers.", ["path", "status"], registry=self.registry)
        self.read = Counter("xwin_prompt_tokens", "Tokens of prompts that were let in.", model, registry=self.registry)
        self.written = Counter("xwin_completion_tokens", "Tokens written for clients.", model, registry=self.registry)
        self.left = Counter("xwin_clients_gone", "Clients that went away before their answer was whole.", model, registry=self.registry)
        self.faults = Counter("xwin_faults", "Steps of a model that failed.", model, registry=self.registry)
        self.taken = Gauge("xwin_requests_taken", "Answers that are being written or wait.", model, registry=self.registry)
        self.places = Gauge("xwin_requests_places", "How many may be.", model, registry=self.registry)
        self.first = Histogram("xwin_first_token_seconds", "From a request to its first token.", model, registry=self.registry, buckets=SECONDS)
        self.whole = Histogram("xwin_request_seconds", "From a request to its last token.", model, registry=self.registry, buckets=SECONDS)

    def know(self, models: Iterable[str]) -> None:
        """Every number of these models is there from the beginning: 0, and not absent."""
        for name in models:
            for meter in (self.read, self.written, self.left, self.faults, self.taken, self.places, self.first, self.whole):
                meter.labels(name)

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)
