"""What the requests of written chats are about: topics, languages, tones, and tasks for programs.

None of it is taken from a set that models are evaluated on.
"""

from __future__ import annotations

TOPICS = tuple(
    """
    volcanoes; the moon; tides; glaciers; deserts; rainforests; coral reefs; whales; bees; owls; mushrooms; oak
    trees; roses; dinosaurs; fossils; the human heart; the liver; vaccines; antibiotics; vitamins; allergies;
    sleep; headaches; running shoes; swimming; chess; football; tennis; mountain climbing; yoga; cycling;
    camping; fishing; gardening; baking bread; coffee; tea ceremonies; cheese; olive oil; spices; soups;
    vegetarian cooking; chocolate; wine; kitchen knives; the Roman Empire; ancient Egypt; the Silk Road; the
    Vikings; the Renaissance; the printing press; the steam engine; the French Revolution; the Industrial
    Revolution; the space race; the Cold War; medieval castles; samurai; pirates; lighthouses; bridges;
    skyscrapers; cathedrals; libraries; museums; theatre; opera; jazz; pianos; guitars; film directors;
    photography; oil painting; sculpture; pottery; knitting; fashion; architecture; poetry; detective novels;
    fairy tales; mythology; philosophy; ethics; logic; rhetoric; grammar; dictionaries; handwriting; sign
    language; newspapers; radio; television; podcasts; advertising; public speaking; job interviews; résumés;
    teamwork; remote work; time management; meetings; negotiation; startups; inflation; interest rates; taxes;
    insurance; stock markets; supply and demand; budgets; savings accounts; international trade; currencies;
    cooperatives; elections; constitutions; courts; contracts; human rights; the United Nations; city planning;
    public transport; electric cars; bicycles; trains; airplanes; sailing ships; satellites; telescopes; black
    holes; comets; Mars; Jupiter; the Sun's corona; light; sound; magnets; electricity; batteries;
    semiconductors; lasers; nuclear energy; wind turbines; solar panels; recycling; plastics; steel; glass;
    concrete; paper; the periodic table; acids and bases; crystals; water; carbon; oxygen; gases;
    thermodynamics; gravity; relativity; quantum mechanics; probability; prime numbers; triangles; fractions;
    statistics; graphs; algebra; calculus; geometry; algorithms; databases; operating systems; computer
    networks; encryption; passwords; web browsers; spreadsheets; version control; testing software; machine
    learning; robots; video games; virtual reality; smartphones; keyboards; printers; 3D printing; barcodes;
    maps; compasses; clocks; calendars; holidays; weddings; birthdays; toys; puzzles; riddles; magic tricks;
    circuses; zoos; pets; dogs; parrots; horses; sheep; farms; harvests; markets; restaurants; hotels; travel;
    passports; beaches; islands; rivers; lakes; mountains; earthquakes; storms; snow; clouds; seasons; climate;
    forests; wolves; bears; penguins; sharks; spiders; butterflies; bacteria; viruses; genes; evolution;
    ecosystems; soil; rice; maize; potatoes; apples; oranges; bananas; honey; sugar; salt; nutrition; dentists;
    nurses; surgeons; firefighters; police; teachers; schools; universities; exams; homework; friendship;
    families; neighbours; children; grandparents; moving house; furniture; lamps; carpets; windows; plumbing;
    painting walls; tools; screws; sewing; laundry; cleaning; shopping; presents; letters; stamps; telephones;
    emojis; jokes; proverbs; dreams; memory; attention; emotions; stress; happiness; courage; kindness; honesty;
    patience; curiosity; creativity; luck; time; silence; colours; numbers; names; alphabets; Japan; Brazil;
    Kenya; Canada; India; Norway; Mexico; Egypt; Australia; Greece; Korea; Peru; Iceland; Morocco; Vietnam;
    Poland; Turkey; Argentina; Portugal; Indonesia
    """.replace("\n", " ").split(";")
)
"""Short names of topics, as they stand in a sentence."""

LANGUAGES = (
    "German",
    "French",
    "Spanish",
    "Italian",
    "Portuguese",
    "Dutch",
    "Polish",
    "Russian",
    "Turkish",
    "Chinese",
    "Japanese",
    "Korean",
    "Arabic",
    "Vietnamese",
    "Indonesian",
)
"""Names of languages, in English."""

CODE_LANGUAGES = ("Python",) * 6 + ("JavaScript", "TypeScript", "Java", "C", "C++", "Go", "Rust", "SQL", "Bash")
"""Languages of programs; Python counts for six of them."""

PROGRAMS = tuple(
    """
    merging two sorted lists; counting the words of a text; finding the longest line of a file; parsing a date;
    formatting a number of bytes; validating an email address; rotating a matrix; transposing a table; a binary
    search; depth-first search in a graph; the shortest path in a grid; topological sorting; a priority queue; a
    least recently used cache; a linked list; a stack with a minimum; a ring buffer; a trie of words; a bloom
    filter; union-find; run-length coding; Caesar's cipher; hexadecimal numbers; Roman numerals for a clock;
    temperature conversion; tax on an invoice; compound interest; the median of a stream; a moving average; a
    histogram; the dot product of vectors; matrix multiplication; the greatest common divisor of several
    numbers; perfect numbers; Pascal's triangle; permutations of a list; subsets with a given sum; the knapsack
    problem; edit distance; the longest common subsequence; wrapping text to a width; removing comments from
    code; reading a CSV file; writing JSON; flattening nested lists; grouping records by a key; joining two
    tables; deduplicating records; sorting by several keys; slicing a string into chunks; checking balanced
    tags; tokenizing an expression; evaluating an expression in postfix notation; a retry with backoff; a timer
    decorator; a context manager for files; an iterator over pairs; a bank account class; an inventory class; a
    parking lot simulation; a card deck; tic-tac-toe; the game of life; a maze generator; a rate limiter; an
    event emitter; a command line parser; a configuration loader; a log analyzer; a URL shortener; a to-do list;
    an address book; date differences; working days between dates; time zones; leap seconds in a schedule; phone
    number formatting; slugs for titles; masking credit card numbers; password strength; a checksum; random
    sampling; shuffling; a weighted choice; interpolation; the area of a polygon; points in a rectangle;
    overlapping intervals; clustering points; image brightness;
    """.replace("\n", " ").split(";")
)
"""Tasks for programs, as they stand after "about"."""

ROLES = (
    "You are a helpful assistant.",
    "You are a concise assistant. Answer in as few words as possible.",
    "You are a patient teacher who explains things step by step.",
    "You are an experienced programmer. Prefer short, tested code.",
    "You are a friendly travel guide.",
    "You are an editor. You improve texts without changing what they say.",
    "You answer questions truthfully. If you do not know something, you say so.",
    "You are a careful assistant that follows every instruction to the letter.",
)
"""System messages that some chats begin with."""

FOLLOW_UPS = (
    "Make it shorter.",
    "Can you give an example?",
    "Why is that?",
    "Explain it to a child.",
    "Say the same in one sentence.",
    "Now list the main points.",
    "Can you go into more detail on the last point?",
    "Rewrite it in a formal tone.",
    "Rewrite it in a friendly tone.",
    "What is a common mistake here?",
    "Are you sure? Check it again.",
    "What would you do differently?",
    "Turn that into a table.",
    "Summarize our conversation so far in two sentences.",
    "Thanks! What should I read about next?",
)
"""What a user may say next, whatever was answered."""


def _clean(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in names if name.strip())


TOPICS, PROGRAMS = _clean(TOPICS), _clean(PROGRAMS)
