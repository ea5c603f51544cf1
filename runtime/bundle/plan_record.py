"""What the manifest says of an optimised bundle: what runs each stage on the machine it was measured on, and why."""

from .strict_model import StrictModel


class TriedForm(StrictModel):
    """A stage in one precision on one backend, as `rediprune optimize` measured it.

    Attributes:
        stage: its name.
        precision: a quantization scheme, or that of the source.
        backend: what ran it.
        seconds: median of one run: a frame of a tower, the prefill of the decoder; None where it could not run.
        per_token: median seconds of a decoded token; None of a tower.
        error: ‖difference‖ / ‖output of the source‖ on samples held out, the worst; None where it was not measured.
        size: bytes of its weights on disk.
        chosen: whether the bundle has it.
        note: why it is out, in a few words.
    """

    stage: str
    precision: str
    backend: str
    seconds: float | None = None
    per_token: float | None = None
    error: float | None = None
    size: int = 0
    chosen: bool = False
    note: str = ""


class PlanRecord(StrictModel):
    """How an optimised bundle came about.

    Attributes:
        machine: `machine.fingerprint` of where it was measured; elsewhere backends are chosen by rule.
        versions: library → version that was measured; of another one, backends are chosen by rule.
        target: what was made least: "first-token", "throughput" or "size".
        budget: what might be lost, "exact", "error=0.02" or "accuracy=1".
        backends: by stage, what runs it.
        reasons: by stage, why.
        tried: everything that was measured.
        outcome: what came of the whole chain, by name, e.g. "first token at keep 0.15, s".
    """

    machine: str
    versions: dict[str, str]
    target: str
    budget: str
    backends: dict[str, str]
    reasons: dict[str, str] = {}
    tried: list[TriedForm] = []
    outcome: dict[str, float] = {}
