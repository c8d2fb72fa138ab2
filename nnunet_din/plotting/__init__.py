"""Pictures of cases, trainings and scores: arrays in, matplotlib figures out."""
