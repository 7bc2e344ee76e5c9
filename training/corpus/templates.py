"""Lines made up where ordinary sentences are thin: numbers, dates, money, names, letters, lists, words alone."""

from __future__ import annotations

import random
from collections.abc import Sequence


def _words(text: str) -> list[str]:
    return text.split()


FIRST = _words(
    """
    Aaron Adam Alan Alice Amanda Amy Andrea Andrew Angela Anna Anthony Ashley Barbara Ben Benjamin Betty Brandon
    Brian Carl Carol Catherine Charles Charlotte Chris Christina Cynthia Daniel David Deborah Dennis Diana
    Donald Donna Dorothy Douglas Edward Elizabeth Emily Emma Eric Ethan Evelyn Frank Gary George Gloria Grace
    Gregory Hannah Harold Harry Heather Helen Henry Isabella Jack Jacob James Jane Janet Jason Jennifer Jeremy
    Jessica Joan John Jonathan Joseph Joshua Joyce Juan Judith Julia Julie Justin Karen Kate Katherine Kelly
    Kenneth Kevin Kimberly Larry Laura Lauren Lawrence Linda Lisa Louis Lucy Margaret Maria Marie Mark Martha
    Martin Mary Matthew Megan Melissa Michael Michelle Nancy Natalie Nathan Nicholas Nicole Olivia Oliver Pamela
    Patricia Patrick Paul Peter Philip Rachel Ralph Raymond Rebecca Richard Robert Roger Ronald Rose Roy Russell
    Ruth Ryan Samantha Samuel Sandra Sara Sarah Scott Sean Sharon Simon Sophia Stephanie Stephen Steven Susan
    Teresa Thomas Timothy Tom Tyler Victoria Vincent Virginia Walter Wayne William Zachary
    """
)
LAST = _words(
    """
    Adams Allen Anderson Bailey Baker Bell Bennett Brooks Brown Butler Campbell Carter Clark Collins Cook Cooper
    Cox Davis Diaz Edwards Evans Fisher Flores Foster Garcia Gibson Gonzalez Graham Grant Gray Green Griffin
    Hall Hamilton Harris Harrison Hayes Henderson Hernandez Hill Howard Hughes Jackson James Jenkins Johnson
    Jones Jordan Kelly Kennedy King Lee Lewis Lopez Marshall Martin Martinez Miller Mitchell Moore Morgan Morris
    Murphy Murray Nelson Owens Parker Patterson Perez Perry Peterson Phillips Powell Price Ramirez Reed Reynolds
    Richardson Rivera Roberts Robinson Rodriguez Rogers Ross Russell Sanchez Sanders Scott Simmons Smith Stevens
    Stewart Sullivan Taylor Thomas Thompson Torres Turner Walker Wallace Ward Watson West White Williams Wilson
    Wood Wright Young
    """
)
PLACES = _words(
    """
    Africa Alaska Amsterdam Arizona Asia Athens Atlanta Australia Austria Baltimore Barcelona Beijing Belgium
    Berlin Boston Brazil Brooklyn California Cambridge Canada Chicago Chile China Colorado Dallas Denmark Denver
    Detroit Dublin Edinburgh Egypt England Europe Finland Florida France Georgia Germany Glasgow Greece Hawaii
    Houston Hungary India Indiana Ireland Israel Italy Jamaica Japan Kansas Kentucky Kenya Lisbon Liverpool
    London Madrid Manchester Mexico Miami Michigan Minnesota Montana Montreal Moscow Nevada Nigeria Norway Ohio
    Oregon Oxford Paris Peru Philadelphia Poland Portland Portugal Prague Rome Russia Scotland Seattle Singapore
    Spain Stockholm Sweden Switzerland Sydney Texas Tokyo Toronto Turkey Utah Vancouver Venice Vermont Vienna
    Vietnam Virginia Wales Warsaw Washington Wisconsin
    """
)
MONTHS = _words("January February March April May June July August September October November December")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
THINGS = _words(
    """
    apples books boxes cars chairs children cups days dogs dollars doors eggs feet friends hours houses inches
    letters men miles minutes months pages people points pounds questions rooms seconds ships students tables
    tickets times trees weeks windows women words years
    """
)
SMALL = _words(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen
    """
)
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
ORDINALS = _words(
    """
    first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
    fifteenth twentieth thirtieth
    """
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def spelled(number: int) -> str:
    """A number below a million in words: 342 is "three hundred and forty-two"."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return TENS[tens - 2] + (f"-{SMALL[rest]}" if rest else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{SMALL[hundreds]} hundred" + (f" and {spelled(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if rest < 100 else " "
    return f"{spelled(thousands)} thousand" + (f"{joint}{spelled(rest)}" if rest else "")


def any_number(rng: random.Random) -> int:
    """Small numbers as often as large ones."""
    return rng.randrange(10 ** rng.randint(1, 5))


def number_line(rng: random.Random) -> str:
    n = any_number(rng)
    written = spelled(n) if rng.random() < 0.6 else str(n) if n < 1000 else f"{n:,}"
    day, month = rng.choice(DAYS), rng.choice(MONTHS)
    hour, minute = rng.randint(1, 12), rng.randint(10, 59)
    clock = f"{hour}:{minute}" if rng.random() < 0.5 else f"{spelled(hour)} {spelled(minute)}"
    year = rng.randint(1700, 2035)
    price = (
        f"${rng.randint(1, 99)}.{rng.randint(10, 99)}" if rng.random() < 0.5 else f"{spelled(any_number(rng))} dollars"
    )
    return rng.choice(
        (
            f"There were {written} {rng.choice(THINGS)}.",
            f"We counted {written} {rng.choice(THINGS)} on {day}.",
            f"The number is {written}.",
            f"Turn to page {rng.randint(2, 400)}.",
            f"It costs {price}.",
            f"I paid {price} for {spelled(rng.randint(2, 40))} {rng.choice(THINGS)}.",
            f"It happened in {year}.",
            f"She was born on {month} {rng.randint(1, 31)}, {year}.",
            f"The train leaves at {clock}.",
            f"Meet me at {clock} on {day}, the {rng.choice(ORDINALS)} of {month}.",
            f"About {rng.randint(2, 99)} percent of them agreed.",
            f"He finished {rng.choice(ORDINALS)} of {spelled(rng.randint(20, 200))}.",
            f"{', '.join(spelled(rng.randint(0, 99)) for _ in range(3)).capitalize()}.",
            f"{written.capitalize()}.",
            f"Is it {written}, or {spelled(any_number(rng))}?",
        )
    )


def name_line(rng: random.Random) -> str:
    first, other = rng.sample(FIRST, 2)
    last, place, there = rng.choice(LAST), *rng.sample(PLACES, 2)
    return rng.choice(
        (
            f"My name is {first} {last}.",
            f"{first} {last} lives in {place}.",
            f"Have you met {first} and {other}?",
            f"Ask {first}, {other}, or Mr. {last}.",
            f"Mrs. {last} has moved from {place} to {there}.",
            f"{first}! Where are you?",
            f"Dr. {last} will see you now.",
            f"We flew from {place} to {there} with {first}.",
            f"Good morning, {first}.",
            f"Does {first} still work for {other} {last} in {place}?",
        )
    )


def letter_line(rng: random.Random) -> str:
    letters = rng.sample(LETTERS, 5)
    return rng.choice(
        (
            f"The letter {letters[0]}.",
            f"{', '.join(letters[: rng.randint(3, 5)])}.",
            f"It starts with {letters[0]} and ends with {letters[1]}.",
            f"Take road {letters[0]} {rng.randint(2, 99)}.",
            f"Is that {letters[0]} or {letters[1]}?",
        )
    )


def list_line(words: Sequence[str], rng: random.Random) -> str:
    """Words in a row: "Cargo, velvet, and rhyme.", with or without the last "and"."""
    parts = [words[0].capitalize(), *words[1:]]
    if len(parts) > 2 and rng.random() < 0.5:
        parts[-1] = f"and {parts[-1]}"
    return ", ".join(parts) + "."


def word_line(word: str, rng: random.Random) -> str:
    return word.capitalize() + rng.choice("...?!")
