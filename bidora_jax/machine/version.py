"""The version of this package: below the files that write it down, which the package's own names stand on."""

__version__ = "0.1.0"
