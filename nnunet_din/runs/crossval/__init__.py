"""Whole cross-validations: which of nnU-Net's commands are left to run, and Snakemake, which runs them."""
