"""Report on evaluations: tables, drawings, a page."""
