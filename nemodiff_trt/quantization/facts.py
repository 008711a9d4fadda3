"""What a manifest says about quantised layers: recipes of the roles, and where the scales come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemodiff_trt.quantization.recipe import Recipe
from nemodiff_trt.vocabulary import Role

# In place of a description of the calibration.
NOT_CALIBRATED = "none"


@dataclass(frozen=True, slots=True)
class QuantizationFacts:
    """Quantisation of one bundle.

    Args:
        recipe: of every role but drafting.
        draft_recipe: of drafting.
        calibration: where the ranges of activations come from, in words.
        is_rehearsal: scales inside the engines are random: they were compiled to be looked at, and must not run.
    """

    recipe: Recipe
    draft_recipe: Recipe
    calibration: str
    is_rehearsal: bool = False

    def recipe_of(self, role: Role) -> Recipe:
        return self.draft_recipe if role is Role.DRAFT else self.recipe

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "recipe": self.recipe.to_dict(),
            "draft_recipe": self.draft_recipe.to_dict(),
            "calibration": self.calibration,
            "is_rehearsal": self.is_rehearsal,
        }

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> QuantizationFacts:
        """Inverse of `to_dict`."""
        recipes = Recipe.from_dict(raw["recipe"]), Recipe.from_dict(raw["draft_recipe"])
        return cls(*recipes, raw["calibration"], raw["is_rehearsal"])
