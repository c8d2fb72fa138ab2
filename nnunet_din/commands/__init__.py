"""The command ``nnunet-din``: one file a sub-command."""
