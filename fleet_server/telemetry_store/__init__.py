"""Where windows are kept, single and merged: the port, its embedded and InfluxDB implementations, and `open_store`."""

from fleet_server.telemetry_store.embedded import EmbeddedStore
from fleet_server.telemetry_store.influx import InfluxStore
from fleet_server.telemetry_store.merged import Grain, MergedKey, MergedWindow
from fleet_server.telemetry_store.opening import open_store
from fleet_server.telemetry_store.port import DeviceTotals, Point, SeriesPoint, Slice, TelemetryStore, Totals

__all__ = [
    "DeviceTotals",
    "EmbeddedStore",
    "Grain",
    "InfluxStore",
    "MergedKey",
    "MergedWindow",
    "Point",
    "SeriesPoint",
    "Slice",
    "TelemetryStore",
    "Totals",
    "open_store",
]
