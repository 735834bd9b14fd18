"""The settings of a ledger, as `Ledger.open` takes them. `docs/configuration.md` has every one."""

from __future__ import annotations

from tallybus.common.settings.sections import Settings as Settings
from tallybus.common.settings.sections import load as load_settings

__all__ = ["Settings", "load_settings"]
