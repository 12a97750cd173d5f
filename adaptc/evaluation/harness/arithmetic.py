"""Word problems of GSM8K's form (arXiv:2110.14168), written by a program: school arithmetic of two to four steps.

They are not GSM8K's, which people wrote: fewer kinds, plainer words. They tell two forms of one model apart, and are no
figure to put beside published ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable

_NAMES = ("Anna", "Ben", "Carla", "David", "Ella", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam", "Mona")
_THINGS = ("marbles", "stickers", "shells", "stamps", "coins", "cards", "beads", "pencils")
_FRUIT = ("apples", "pears", "oranges", "plums", "peaches")

PROBLEMS, SEED = 200, 18
"""What the task asks: so many problems, of these draws."""

Problem = tuple[str, int]
"""What is asked, and the number that is right."""


def _given_away(rng: random.Random, name: str, other: str) -> Problem:
    thing, packs, each = rng.choice(_THINGS), rng.randint(3, 9), rng.randint(6, 15)
    given, found = rng.randint(4, packs * each // 2), rng.randint(3, 20)
    text = (
        f"{name} has {packs} packs of {thing} with {each} {thing} in each pack. {name} gives {given} {thing} to "
        f"{other} and then finds {found} more. How many {thing} does {name} have now?"
    )
    return text, packs * each - given + found


def _change(rng: random.Random, name: str, _other: str) -> Problem:
    fruit, books = rng.sample(_FRUIT, 2)
    count, price, many, cost = rng.randint(2, 8), rng.randint(2, 5), rng.randint(2, 6), rng.randint(3, 7)
    paid = -(-(count * price + many * cost + 1) // 10) * 10
    text = (
        f"{name} buys {count} {fruit} at ${price} each and {many} {books} at ${cost} each, and pays with ${paid}. "
        f"How many dollars of change does {name} get?"
    )
    return text, paid - count * price - many * cost


def _weeks(rng: random.Random, name: str, _other: str) -> Problem:
    pages, days, weekend, weeks = rng.randint(8, 25), rng.randint(3, 5), rng.randint(20, 50), rng.randint(2, 6)
    text = (
        f"{name} reads {pages} pages a day on {days} days of each week and {weekend} pages on each weekend. How many "
        f"pages does {name} read in {weeks} weeks?"
    )
    return text, (pages * days + weekend) * weeks


def _shared(rng: random.Random, name: str, other: str) -> Problem:
    friends, each, eaten = rng.randint(3, 8), rng.randint(4, 12), rng.randint(2, 9)
    total = friends * each + eaten
    text = (
        f"{name} and {other} bake {total} cookies and eat {eaten} of them. They put the rest into {friends} boxes with "
        "the same number in each box. How many cookies are in each box?"
    )
    return text, each


def _ages(rng: random.Random, name: str, other: str) -> Problem:
    young, times, later = rng.randint(4, 12), rng.randint(2, 4), rng.randint(3, 15)
    text = (
        f"{other} is {young} years old. {name} is {times} times as old as {other}. How old will {name} be in {later} "
        "years?"
    )
    return text, young * times + later


def _half(rng: random.Random, name: str, other: str) -> Problem:
    thing, half, more = rng.choice(_THINGS), rng.randint(8, 40), rng.randint(3, 25)
    text = (
        f"{name} collected {2 * half} {thing}. {other} collected half as many as {name}, and then {more} more. How "
        f"many {thing} did {name} and {other} collect together?"
    )
    return text, 3 * half + more


def _hours(rng: random.Random, name: str, _other: str) -> Problem:
    wage, hours, extra, goal = rng.randint(9, 20), rng.randint(4, 8), rng.randint(10, 30), rng.randint(2, 5)
    total = wage * hours * goal + extra
    text = (
        f"{name} earns ${wage} an hour and works {hours} hours a day. {name} already has ${extra}. How many days does "
        f"{name} need to work to have ${total}?"
    )
    return text, goal


def _bus(rng: random.Random, _name: str, _other: str) -> Problem:
    start, left, boarded = rng.randint(20, 45), rng.randint(5, 15), rng.randint(3, 18)
    last = rng.randint(2, 12)
    text = (
        f"A bus starts with {start} passengers. At the first stop {left} get off and {boarded} get on. At the second "
        f"stop {last} get off and twice as many get on. How many passengers are on the bus now?"
    )
    return text, start - left + boarded + last


def _area(rng: random.Random, name: str, _other: str) -> Problem:
    length, width, price = rng.randint(4, 15), rng.randint(3, 9), rng.randint(2, 12)
    text = (
        f"{name}'s garden is {length} meters long and {width} meters wide. A fence costs ${price} for each meter. How "
        "many dollars does a fence around the whole garden cost?"
    )
    return text, 2 * (length + width) * price


def _percent(rng: random.Random, name: str, _other: str) -> Problem:
    price, share, count = rng.randrange(20, 200, 20), rng.choice((10, 20, 25, 50)), rng.randint(2, 5)
    text = (
        f"A jacket costs ${price}. In a sale it costs {share}% less. {name} buys {count} jackets in the sale. How many "
        "dollars does that cost in total?"
    )
    return text, price * (100 - share) * count // 100


def _speed(rng: random.Random, name: str, other: str) -> Problem:
    slow, more, hours = rng.randint(8, 15), rng.randint(2, 9), rng.randint(2, 6)
    text = (
        f"{name} cycles at {slow} kilometers an hour. {other} cycles {more} kilometers an hour faster. They start at "
        f"the same place and ride {hours} hours in opposite directions. How many kilometers are they apart then?"
    )
    return text, (2 * slow + more) * hours


def _rows(rng: random.Random, name: str, _other: str) -> Problem:
    rows, seats, sold, price = rng.randint(5, 12), rng.randint(8, 20), rng.randint(10, 35), rng.randint(4, 9)
    text = (
        f"A theater has {rows} rows with {seats} seats in each row. {name} counts {sold} empty seats tonight. Each "
        f"ticket costs ${price}. How many dollars did the tickets for tonight bring in?"
    )
    return text, (rows * seats - sold) * price


_KINDS: tuple[Callable[[random.Random, str, str], Problem], ...] = (
    *(_given_away, _change, _weeks, _shared, _ages, _half, _hours, _bus, _area, _percent, _speed, _rows),
)


def word_problems(count: int = PROBLEMS, seed: int = SEED) -> list[Problem]:
    """Problems, each other than all before it; every kind comes once before any comes again.

    Args:
        count: How many.
        seed: Decides every draw.
    """
    rng = random.Random(seed)
    found: dict[str, int] = {}
    while len(found) < count:
        text, answer = _KINDS[len(found) % len(_KINDS)](rng, *rng.sample(_NAMES, 2))
        found.setdefault(text, answer)
    return list(found.items())
