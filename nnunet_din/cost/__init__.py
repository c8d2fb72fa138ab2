"""What networks cost: counted, measured, and as trained models' logs say."""
