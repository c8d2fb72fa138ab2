"""Trained models for programs without nnU-Net, and for others."""
