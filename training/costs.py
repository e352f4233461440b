"""What a wrong verdict costs a line and what the line bears: `limits.toml`, checked at the boundary."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.faults import read_toml, validated


class Costs(BaseModel):
    """Costs of one screen each, in any one unit, and what the line bears; all of whole screens."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    escape_cost: float = Field(100.0, gt=0)  # of a defective screen that passed; what must never happen is capped
    overkill_cost: float = Field(10.0, gt=0)  # of a clean one that failed
    review_cost: float = Field(1.0, gt=0)  # of any that a person looks at, who is taken to find the truth
    review_capacity: float = Field(0.15, ge=0, le=1)  # largest share of the line's screens that people can look at
    escape_cap: float = Field(0.02, gt=0, lt=1)  # largest share of the defective screens that may pass, at any cost
    prevalence: float = Field(0.1, gt=0, lt=1)  # share of the line's screens that are defective

    @model_validator(mode="after")
    def _review_is_cheapest(self) -> Self:
        if self.review_cost > min(self.escape_cost, self.overkill_cost):
            raise ValueError("review_cost is over escape_cost or overkill_cost: nothing would be worth a review")
        return self

    def of(self, *, escape: float, overkill: float, review: float) -> float:
        """Expected cost of a screen of the line.

        Args:
            escape: share of the defective ones that passes.
            overkill: share of the clean ones that fails.
            review: share of all that goes to review.
        """
        return (
            self.prevalence * self.escape_cost * escape
            + (1 - self.prevalence) * self.overkill_cost * overkill
            + self.review_cost * review
        )

    def __str__(self) -> str:
        return (
            f"escape {self.escape_cost:g}, overkill {self.overkill_cost:g}, review {self.review_cost:g}; "
            f"{self.prevalence:.1%} of the line's screens defective, at most {self.review_capacity:.1%} to review, "
            f"at most {self.escape_cap:.2%} of the defective ones to escape"
        )


def read_costs(path: Path) -> Costs:
    """Read `limits.toml`; a key that is left out has its default.

    Raises:
        ValueError: not TOML, or a key is unknown or out of range; the message names it.
    """
    return validated(Costs, read_toml(path), path)
