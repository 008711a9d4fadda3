"""`nemodiff bench`: the same prompts in every mode and baseline, checked before they are timed, and what came of it."""
