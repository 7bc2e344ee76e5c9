"""English texts in letters alone, as Flash was trained on them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_vllm.text.normalize import normalize_spelled_out
from chatterbox_vllm.text.spelling.numbers import number_words, ordinal_words

# What chatterbox-flash 0.1.0 makes of these texts.
PUBLISHED = (
    (
        "Dr. Smith met Mrs. Jones and Mr. Brown at 5 St. James Ave. on Jan. 3.",
        "doctor Smith met misess Jones and mister Brown at five saint James avenue on january three.",
    ),
    ("We meet at 3.45 pm or 5 p.m. in the hall.", "We meet at three forty five PM or five PM in the hall."),
    (
        "The train leaves at 10 am and arrives at 11:59 PM today.",
        "The train leaves at ten AM and arrives at eleven fifty nine PM today.",
    ),
    ("Call 555-1234 now", "Call five five five, one two three four now"),
    ("Call me at (555) 123-4567 tomorrow", "Call me at five five five, one two three, four five six seven tomorrow"),
    (
        "My number is +1 555 123 4567 and yours is 0301234567",
        "My number is one, five five five, one two three, four five six seven "
        "and yours is zero three zero, one two three, four five six seven",
    ),
    (
        "He was born in 1985 and moved in 2004 to Paris.",
        "He was born in nineteen eighty five and moved in two thousand four to Paris.",
    ),
    (
        "It lasted from 1990-1995 and again from 2001 - 2019.",
        "It lasted from nineteen ninety to nineteen ninety five and again from two thousand one to twenty nineteen.",
    ),
    ("In 1905 the tower stood there since 1850.", "In nineteen oh five the tower stood there since eighteen fifty."),
    ("By 2025 it will be done.", "By twenty twenty five it will be done."),
    ("I have 3 dogs, 21 cats and 100 birds.", "I have three dogs, twenty one cats and one hundred birds."),
    (
        "There were 1,234,567 people and 12,500 dogs.",
        "There were one million two hundred thirty four thousand five hundred sixty seven people "
        "and twelve thousand five hundred dogs.",
    ),
    (
        "It costs $5, or $5.20, or $0.99, or $1.01.",
        "It costs five dollars, or five dollars, twenty cents, or ninety nine cents, or one dollar, one cent.",
    ),
    (
        "They paid $5 million for it, and $1.5B for that.",
        "They paid five million dollars for it, and one point five billion dollars for that.",
    ),
    (
        "The firm is worth $20K or $3T today.",
        "The firm is worth twenty thousand dollars or three trillion dollars today.",
    ),
    (
        "It is 5km away and weighs 3kg and 2.5kg more.",
        "It is five kilometers away and weighs three kilograms and two point five kilograms more.",
    ),
    (
        "Add 250ml of milk, 1g of salt, 10cl of oil and 1l of water.",
        "Add two hundred fifty milliliters of milk, one gram of salt, ten centiliters of oil and one liter of water.",
    ),
    (
        "The board is 2m by 30cm by 5mm, or 6ft by 10in, or 4yds.",
        "The board is two meters by thirty centimeters by five millimeters, or six feet by ten inches, or four yards.",
    ),
    ("It took 30s or 45secs to load.", "It took thirty seconds or forty five seconds to load."),
    ("We are #1 and room #205 is free.", "We are number one and room number two hundred five is free."),
    (
        "Pi is 3.14 and e is 2.718 and 0.05 is small and 10.0 is ten.",
        "Pi is three point one four and e is two point seven one eight and zero point zero five is small "
        "and ten point zero is ten.",
    ),
    (
        "COVID-19 is well-known, and state-of-the-art TTS is by AI.",
        "COVID nineteen is well known, and state of the art t t s is by a i",
    ),
    ("The CEO - a kind man - left.", "The c e o, a kind man, left."),
    ("We have 5 > 3 and 2 < 4 here.", "We have five is greater than three and two is less than four here."),
    (
        "It weighs 5 kg and is 3 km long and took 5 min.",
        "It weighs five kilogram and is three kilometer long and took five minute",
    ),
    ("Seats 10-20 are taken.", "Seats ten - twenty are taken."),
    ("The 1990 - 2000 years", "The one thousand nine hundred ninety - two thousand years"),
    (
        "He scored 1900 points, 2000 points, 1100 points and 2300 points.",
        "He scored nineteen hundred points, two thousand points, eleven hundred points "
        "and twenty three hundred points.",
    ),
    ("No digits here at all.", "No digits here at all."),
    ('"Quotes" stay; so do (brackets)!', '"Quotes" stay; so do (brackets)!'),
    ("1000000000 is a lot", "one zero zero, zero zero zero, zero zero zero zero is a lot"),
    ("Version 2 of 3.", "Version two of three."),
    (
        "It was 5 o'clock, etc. and so on, e.g. this, i.e. that.",
        "It was five o'clock, etc and so on, eg this, ie that.",
    ),
    ("On Mon. and Tue. we work; on Sept. 5 we rest.", "On monday and tuesday we work; on september five we rest."),
    ("Vol. 3 vs. vol. 4", "volume three versus volume four"),
    ("100 is 100, and 5 is 5.", "one hundred is one hundred, and five is five."),
    ("I was there until 1999.", "I was there until nineteen ninety nine."),
    ("10,000 steps", "ten thousand steps"),
    ("Go to room 101 at once, please.", "Go to room one hundred one at once, please."),
    ("He ran 26.2 miles", "He ran twenty six point two miles"),
    ("It is 1 of 12 and 13 of 19.", "It is one of twelve and thirteen of nineteen."),
    ("90, 80 and 15.", "ninety, eighty and fifteen."),
    ("US$1,000 is what it cost.", "one thousand dollars is what it cost."),
    ("Call 555-1234.", "Call five five five, one two three four."),
    ("Its number is 100000 now", "Its number is one zero, zero zero zero zero now"),
    (
        "Dial 12345678 or 123456789012",
        "Dial one two, three four five, six seven eight or "
        "one two, three four five, six seven eight, nine zero one two",
    ),
    ("Berlin 1936 was in 1936-37.", "Berlin nineteen thirty six was in one nine three six, three seven."),
)
# Where it loses a space, a mark or a letter, or says what nobody would, we do not follow it.
OURS = (
    ("It was 12:30 when he came.", "It was twelve thirty when he came."),
    ("It costs ¥500.", "It costs five hundred yen."),
    ("3.5% of 1%", "three point five percent of one percent"),
    ("On the 1st, and the 30th.", "On the first, and the thirtieth."),
    ("In 1900 it began, in the 1990s it ended.", "In nineteen hundred it began, in the nineteen nineties it ended."),
    ("The GTX1080 is fast; B2B is not.", "The GTX one thousand eighty is fast; B two B is not."),
    ("I paid $5.5 for 5 amps.", "I paid five dollars, fifty cents for five amps."),
    ("Call 0049 30 123456, please.", "Call zero zero four nine, three zero, one two, three four five six, please."),
    ("At 0:30.", "At zero thirty."),
    ("The ’90s, the '20s, and '30s'.", "The nineties, the twenties, and 'thirty seconds'."),
    ("1½ cups, or 10² of them.", "one one/two cups, or ten two of them."),
    ('(5kg) "3rd" [£5]; £.50', '(five kilograms) "third" [five pounds]; zero pounds fifty'),
)


@pytest.mark.parametrize(("text", "spelled"), [*PUBLISHED, *OURS])
def test_texts(text: str, spelled: str) -> None:
    assert normalize_spelled_out(text) == spelled


def test_numbers() -> None:
    words = {
        0: "zero",
        15: "fifteen",
        40: "forty",
        99: "ninety nine",
        105: "one hundred five",
        1100: "eleven hundred",
        2000: "two thousand",
        2900: "twenty nine hundred",
        3000: "three thousand",
        3100: "three thousand one hundred",
        1_000_001: "one million one",
        10**18 - 1: "nine hundred ninety nine quadrillion "
        + " ".join(f"nine hundred ninety nine {unit}" for unit in ("trillion", "billion", "million", "thousand"))
        + " nine hundred ninety nine",
    }
    assert {number: number_words(number) for number in words} == words
    ordinals = {
        1: "first",
        12: "twelfth",
        22: "twenty second",
        30: "thirtieth",
        100: "one hundredth",
        1000: "one thousandth",
    }
    assert {number: ordinal_words(number) for number in ordinals} == ordinals


PARTS = [
    *"0123456789",
    *".,:;-–+()[]$£€¥%# ",
    "am",
    " p.m.",
    "kg",
    "st",
    "th",
    "s",
    "in ",
    "Dr. ",
    "K",
    "million",
    "é",
    "٣",
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=40).map("".join))
def test_no_digit_is_left(text: str) -> None:
    spelled = normalize_spelled_out(text)
    assert not any(character.isdigit() for character in spelled), spelled


def test_half_a_megabyte_takes_no_more_than_seconds() -> None:
    for text in ("1" * 500_000, "1 " * 250_000, "a1" * 250_000, "$5.20, at 3:30 pm, in 1999. " * 18_000):
        assert normalize_spelled_out(text)
