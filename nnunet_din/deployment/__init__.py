"""Trained models for programs without nnU-Net."""
