"""The one reader of what nnU-Net writes: folders, models, logs, plans."""
