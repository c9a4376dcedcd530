"""Where windows are kept: the port, its embedded and InfluxDB implementations, and `open_store`."""

from fleet_server.telemetry_store.embedded import EmbeddedStore
from fleet_server.telemetry_store.influx import InfluxStore
from fleet_server.telemetry_store.opening import open_store
from fleet_server.telemetry_store.port import DeviceTotals, SeriesPoint, Slice, TelemetryStore, Totals

__all__ = [
    "DeviceTotals",
    "EmbeddedStore",
    "InfluxStore",
    "SeriesPoint",
    "Slice",
    "TelemetryStore",
    "Totals",
    "open_store",
]
