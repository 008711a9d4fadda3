"""Number formats of quantised linear layers, recipes, calibration. Formats need torch only; calibration needs ModelOpt."""
