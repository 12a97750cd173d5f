"""Pictures and figures of a page, whatever they show: boxes and arrows in rows, curves, bars, tables, units."""
