"""The drift report that people look at: pure functions from findings to one HTML file."""

from fleet_server.drift.page.method import Making
from fleet_server.drift.page.page import render_page

__all__ = ["Making", "render_page"]
