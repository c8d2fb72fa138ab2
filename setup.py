"""Metadata is in pyproject.toml and setup.cfg; this file only puts the start-up file beside the package.

``nnunet_din.pth`` has to lie in site-packages itself, in regular and in editable installs, and be recorded there so
that uninstalling removes it. setuptools has no declarative way to say so: data files go to the environment's prefix.
"""

from setuptools import Distribution, setup
from setuptools.command.install import install  # noqa: F401  (importing it makes distutils available below)

from distutils.command.install_data import install_data  # isort: skip


class InstallBesidePackages(install_data):
    """Install data files where the packages go."""

    def finalize_options(self):
        self.set_undefined_options("install", ("install_lib", "install_dir"), ("root", "root"), ("force", "force"))


class DistributionWithData(Distribution):
    """Editable installs ask for ``has_data``, a name that no distribution has, and would skip the data files."""

    has_data = Distribution.has_data_files


setup(
    data_files=[("", ["nnunet_din.pth"])],
    cmdclass={"install_data": InstallBesidePackages},
    distclass=DistributionWithData,
)
