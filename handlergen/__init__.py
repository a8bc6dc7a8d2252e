"""Wrap a user's module into a TorchServe archive whose predictions run one at a time on the device."""

__version__ = "0.1.0"
