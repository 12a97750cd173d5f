"""Parts of a program on disk: trained gates, stitches and routers, and the codes that quantization chose."""
