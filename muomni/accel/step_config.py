"""A step configuration: how a training step is computed. Another one changes nothing that is learnt beyond rounding."""

from typing import Any, Literal, Self

from muomni.accel.attention_backend import BackendName
from muomni.accel.cpu_allocator.choice import Name as AllocatorName
from muomni.config.base import Frozen
from muomni.config.recipe import Recipe

Checkpointing = Literal["off", "selective", "full"]
# The least recomputation first.
MODES: tuple[Checkpointing, ...] = ("off", "selective", "full")


class StepConfig(Frozen):
    """One step configuration.

    Attributes:
        micro_batch, accumulation: rows of a micro-batch, and micro-batches of a step.
        checkpointing, attention, precision, allocator: as in a recipe.
        compile: what is compiled; what a recipe leaves to a trial is not.
        num_workers: threads that read the data.
    """

    micro_batch: int
    accumulation: int = 1
    checkpointing: Checkpointing = "off"
    compile: Literal["off", "blocks", "full"] = "off"
    attention: BackendName = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    allocator: AllocatorName = "auto"
    num_workers: int = 0

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The recipe's own."""
        return cls(
            micro_batch=recipe.batch_size,
            accumulation=recipe.gradient_accumulation_steps,
            checkpointing=recipe.gradient_checkpointing,
            compile=recipe.compile if recipe.compile in ("blocks", "full") else "off",
            attention=recipe.attention,
            precision=recipe.precision,
            allocator=recipe.allocator,
            num_workers=recipe.data.num_workers,
        )

    @property
    def rows(self) -> int:
        """Of a step: the effective batch."""
        return self.micro_batch * self.accumulation

    def with_micro_batch(self, size: int) -> Self:
        """The same effective batch in micro-batches of `size` rows, which divides it."""
        return self.replace(micro_batch=size, accumulation=self.rows // size)

    def fragment(self, base: "StepConfig | None" = None) -> dict[str, Any]:
        """The keys of a recipe that give this configuration.

        Args:
            base: the recipe's own; attention and reader threads are named only where they differ from it.
        """
        keys: dict[str, Any] = {
            "batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_checkpointing": self.checkpointing,
            "compile": self.compile,
        }
        if base is not None and self.attention != base.attention:
            keys["attention"] = self.attention
        if base is not None and self.num_workers != base.num_workers:
            keys["data"] = {"num_workers": self.num_workers}
        return keys

    def __str__(self) -> str:
        attention = "" if self.attention == "auto" else f", attention {self.attention}"
        return (
            f"{self.accumulation} × {self.micro_batch} rows, checkpointing {self.checkpointing}, compile "
            f"{self.compile}{attention}, {self.num_workers} reader threads"
        )
