"""Dual Interaction Network (DIN) as a plug-in for nnU-Net v2.

Importing this package makes its planners, preprocessor and trainers known to nnU-Net. In an installed environment a
start-up file has done that already; the import serves notebooks, frozen applications and ``python -S``. It loads
neither torch nor nnunetv2: import what you need from the sub-packages.
"""

from nnunet_din import plugin

__version__ = "0.1.0"

plugin.register()
