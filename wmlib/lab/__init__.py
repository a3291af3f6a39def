"""What an experiment needs and no importer does: data, presets, recorded runs, figures, verdicts."""
