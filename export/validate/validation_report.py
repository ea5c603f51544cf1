"""The outcome of a validation."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .end_to_end_comparison import EndToEndRow
from .stage_comparison import StageRow


@dataclass
class ValidationReport:
    """What was compared, and how.

    Attributes:
        bundle, backend, precision: what was held against eager PyTorch; the backend in words.
        eager: stages that ran in eager PyTorch end to end.
        backends: by stage, what ran it.
        stages: one row for each stage, input and output.
        end_to_end: one row for each request; empty where only stages were asked for.
    """

    bundle: str
    backend: str
    precision: str
    eager: list[str] = field(default_factory=list)
    backends: dict[str, str] = field(default_factory=dict)
    stages: list[StageRow] = field(default_factory=list)
    end_to_end: list[EndToEndRow] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Every row is within tolerance."""
        return all(row.passed for row in (*self.stages, *self.end_to_end))

    @property
    def failing_stages(self) -> list[str]:
        """Stages that differ from eager on the same inputs: the ones to look at."""
        return list(dict.fromkeys(row.stage for row in self.stages if not row.passed))

    def document(self) -> dict[str, Any]:
        """The report as JSON types; `stories` is `end_to_end` under the name that version 0.1 gave it."""
        document = {"passed": self.passed, "failing_stages": self.failing_stages} | asdict(self)
        return document | {"stories": document["end_to_end"]}
