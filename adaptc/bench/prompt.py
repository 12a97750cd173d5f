"""The text that `adaptc bench` has every engine read; written for this, so it is in no training set."""

from __future__ import annotations

TEXT = """\
The harbour town had been asleep for most of the winter, and when the first warm wind came in from the
south nobody quite believed it. Boats that had lain upside down on the shingle since October were turned
over, scraped and painted. The baker opened her shutters an hour earlier than usual. Children who had
spent four months indoors ran down to the water to see whether the ice had really gone, and came back
with wet shoes and long stories about what they had seen under the pier.

Every spring the same question was asked in the town hall: what should be done about the old lighthouse?
It had stood on the rocks for a hundred and sixty years, and for the last thirty of them it had given no
light at all. Ships now found their way by satellite, and the lamp had been taken to a museum in the
capital, where it turned slowly behind a rope for visitors who did not know where it had come from. The
tower itself was sound. Its walls were two metres thick at the base, and the iron stairs inside had been
made by a firm that was proud of its work. But the door had rotted, gulls nested in the lantern room, and
the small house where three generations of keepers had lived had lost most of its roof.

There were, as there always are, three parties. The first wanted to pull everything down before a stone
fell on somebody. The second wanted to sell it to a company from the city, which had promised to build a
restaurant with glass walls and a car park for eighty cars. The third party, which was the smallest and
the loudest, wanted to repair the tower by hand, one summer at a time, and to light the lamp again on the
shortest night of the year. Its leader was a retired teacher of physics named Anna Lind, who had learned
to climb as a girl and who, at the age of seventy-one, still went up the outside of the tower every May
to look at the mortar.

That year she brought a notebook to the meeting. In it she had written down, for every course of stone,
which joints were open and how deep, and what it would cost to close them. She had asked the harbour
master how much the town paid each year for the fence that kept people away from the rocks, and she had
worked out that in nine years the fence would cost more than the repair. Nobody had ever put the two
numbers side by side before. There was a long silence, and then the baker asked how many people would be
needed, and for how many weekends, and whether there would be soup.
"""
