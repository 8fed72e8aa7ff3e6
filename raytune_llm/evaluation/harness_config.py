"""Which tasks of EleutherAI's lm-evaluation-harness the tuned model and its base are run on (evaluation/harness.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from raytune_llm.errors import require
from raytune_llm.stores.locations import LOCATION


@dataclass(frozen=True, kw_only=True)
class Harness:
    """Tasks of lm-evaluation-harness, run once after the comparison."""

    tasks: list[str]
    """Names of tasks, groups or tags, as `lm_eval ls tasks` lists them, or of own ones in include_path; [] = none."""
    include_path: str | None = field(metadata=LOCATION)
    """Folder with YAML files of own tasks, whose data_files are absolute paths or URLs; null = none. Must be reachable
    from all nodes of a cluster. Its `!function` tags call Python code of that folder."""
    limit: int | None
    """Examples of each task, the first ones; ≥ 1, or null for all."""
    num_fewshot: int | None
    """Solved examples in each prompt; ≥ 0, or null for the task's own number. Tasks that are fixed at 0 keep it."""
    batch_size: int
    """Sequences at once; ≥ 1."""
    apply_chat_template: bool
    """Whether prompts become a user's turn in the base's chat template, else plain text."""

    def __post_init__(self) -> None:
        key = "evaluation.harness"
        require(self.limit is None or self.limit >= 1, f"{key}.limit", self.limit, "≥ 1 or null")
        few = self.num_fewshot
        require(few is None or few >= 0, f"{key}.num_fewshot", few, "≥ 0 or null")
        require(self.batch_size >= 1, f"{key}.batch_size", self.batch_size, "≥ 1")
        twice = sorted({name for name in self.tasks if self.tasks.count(name) > 1})
        require(not twice, f"{key}.tasks", self.tasks, f"each once; repeated: {', '.join(twice)}")
