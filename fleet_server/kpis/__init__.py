"""Key figures of the fleet: `figures` (what they are, pure) and `reading` (where they come from)."""

from fleet_server.kpis.figures import Kpis, Uptime, key_figures, merge_totals, uptime_share
from fleet_server.kpis.reading import KPI_SPAN_S, count_devices, read_kpis

__all__ = ["KPI_SPAN_S", "Kpis", "Uptime", "count_devices", "key_figures", "merge_totals", "read_kpis", "uptime_share"]
