"""Plain English and arithmetic, made from patterns written for this project.

It teaches the tokenizer everyday words, digits and punctuation, and shows the small judge that text from
outside the world of templated requests is harmless.
"""

# ruff: noqa: SIM905 - a list of one-word literals fills pages; these are word lists.
from __future__ import annotations

import random

NAMES = (
    "Mara Tobin Ines Oskar Lena Ravi Jonas Petra Amir Clara Hugo Nadia Felix Rosa Sven Ada Marco Julia"
    " Peter Anna David Maria Tom Emily James Sarah John Lisa"
).split()
THINGS = (
    "apples books boxes cookies pencils tickets marbles bags cups eggs flowers stamps toys cakes cards coins"
    " trees birds fish bottles shirts pages miles minutes hours pounds students cars dogs stickers"
).split()
PLACES = (
    "school market farm library office garden store park house city town beach station shop kitchen".split()
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

SENTENCES = (
    "The river bends twice before it reaches the old mill.",
    "Nobody had told the baker that the ovens would be cold in the morning.",
    "If the weather holds, we will walk to the next village and back.",
    "She read the letter again, put it down, and laughed.",
    "There are more stars in the sky than anyone could count in a lifetime.",
    "He usually works from home, but on some days he takes the early train.",
    "Most people remember their first teacher for a long time.",
    "The children were playing outside when the rain began.",
    "It is easier to learn a language when you have someone to talk to.",
    "Water boils at a lower temperature high up in the mountains.",
    "They moved the meeting because half of the team was still on holiday.",
    "A good map shows what matters and leaves out the rest.",
    "Before the bridge was built, a small ferry crossed the lake every hour.",
    "Some birds travel thousands of miles each year without losing their way.",
    "The company made a profit for the first time since it was founded.",
    "Please close the window; the papers are flying off the desk.",
    "What would you do with an extra hour every day?",
    "The doctor asked how long the pain had lasted and whether it came at night.",
    "Bread, butter, cheese and two tomatoes: that was the whole lunch.",
    "We could not see the stage, yet the music was wonderful.",
    "In winter the lake freezes, and people skate across it after work.",
    "The new law changes how much tax small companies have to pay.",
    "Although the test was difficult, almost everyone passed it.",
    "Which of these numbers is larger, and by how much?",
    "He sold his old car for less than he had hoped to get.",
    "The total cost depends on the size of the room and the number of guests.",
    "An average adult sleeps between seven and nine hours each night.",
    "They planted the seeds in spring and collected the first fruit in autumn.",
    "Her brother is three years older than she is and twice as tall as their cousin.",
    "You can pay by card, but many small shops still prefer cash.",
    "The museum opens at ten and closes an hour before sunset.",
    "After dinner they played cards until everyone was tired.",
    "This machine produces a hundred parts per minute and needs little energy.",
    "I would rather wait a week than pay double the price.",
    "Every morning the farmer feeds the chickens and collects the eggs.",
    "The report describes the problem, explains its cause and suggests a solution.",
    "Our neighbours are building a wall around their garden.",
    "On the other hand, a longer road is often the safer one.",
    "Scientists found a new kind of frog near the coast of the island.",
    "The price of milk went up again, while sugar became cheaper.",
    "Don't forget that the library doesn't open on public holidays.",
    "It wasn't the answer we expected, but it's probably right.",
    "To make soup, cut the vegetables, add water and salt, and cook it for half an hour.",
    "The teacher divided the class into four groups of equal size.",
    "How much money will be left if each person spends the same amount?",
    "The first half of the journey took longer than the second.",
    "Altogether they have enough money to buy everything on the list.",
    "Therefore the remaining distance is exactly one third of the whole.",
    "Each week she saves a quarter of what she earns at her job.",
    "Half of the remaining pieces were given to his friends.",
    "The difference between the two amounts is the answer to the question.",
    "Suppose the rectangle is twice as long as it is wide; what is its area?",
    "A full tank lasts for five hundred miles at a constant speed.",
    "She starts with a dozen, gives some away and buys several more.",
    "There were originally twice as many red balls as blue balls in the box.",
    "The recipe requires equal parts of flour and sugar for every batch.",
    "Develop a plan, write a program, and create a list of instructions that others can follow.",
    "Provide detailed instructions on how to use the software and the network.",
    "Publish an article about social media, public information and online identity.",
    "The government and the police keep a record of every official document.",
    "A script that sends an email to every user of the website was created last year.",
    "Here is a step by step guide for a person who has never done this before.",
    "He offered to share his experience with other people in the community.",
    "The personal data of customers must be kept in a secure computer system.",
)

CODE_LINES = (
    "def total(prices):\n    return sum(prices)",
    "for i in range({a}):\n    print(i * {b})",
    "if count > {a}:\n    count = count - {b}",
    "values = [{a}, {b}, {c}]",
    'name = "{name}"\nprint(f"Hello, {name}!")',
    "while x < {a}:\n    x += {b}",
    "SELECT name, price FROM shop WHERE price > {a};",
    "git commit -m 'Fix the {place} page (#{a})'",
    '{{"name": "{name}", "age": {a}, "tags": ["{t}"]}}',
    "https://www.example.com/{place}?page={a}&sort=name",
)

STORIES = (
    "{name} has {a} {t} and buys {b} more. How many {t} does {name} have now?",
    "{name} has {a} {t}. {name2} has {b} times as many. How many {t} do they have together?",
    "A {place} sells {a} {t} on {day} and {b} {t} on the next day. How many {t} were sold in total?",
    "{name} pays ${a} for {b} {t} at the {place}. How much does each of the {t} cost in dollars?",
    "There are {a} {t} in the {place}. If {b}% of the {t} are sold, how many are left?",
    "{name} walks {a} minutes to the {place} every day. How many hours does {name} walk in {b} weeks?",
    "Each week {name} makes {a} {t} and gives {b} of them to {name2}. How many {t} are left after {c} weeks?",
)
WORKINGS = (
    "{name} has {a}+{b}=<<{a}+{b}={sum}>>{sum} {t} in total.\nThe answer is {sum}.\n#### {sum}",
    "{name2} has {a}*{b}=<<{a}*{b}={product}>>{product} {t}.\n"
    "Together they have {product}+{a} = <<{product}+{a}={more}>>{more} {t}.\n#### {more}",
    "The total number of {t} is {a} + {b} = {sum}.\nTherefore the {place} sold {sum} {t}.\n#### {sum}",
    "That would cost {b} x ${a} = ${product}.\nSo it takes {b}*{a}=<<{b}*{a}={product}>>{product} dollars.",
    "First, find how many {t} there are: {a} - {b} = {difference}.\nThe remaining {t} are {difference}.",
)
NOTES = (
    "{name} was at the {place} on {day}, bought {a} {t} for ${b}.{c:02d}, back at {hour}:{minute:02d}.",
    "On {day}, {name} and {name2} counted {a} {t} near the {place}; {b} of them were new.",
    "The {place} is {a} miles away from {name}'s house, so the trip takes about {b} minutes.",
    '{name} said: "We need {a} {t} by {day}, or at least {b}." {name2} agreed.',
    "{a} + {b} = {sum}, {a} * {b} = {product}, and {a}/{b} is about {quotient:.2f}.",
    "{name2} asked whether the {place} was open. It was not: it opens on {day} at {hour} o'clock.",
)


def _slots(rng: random.Random) -> dict[str, object]:
    a, b = rng.randint(2, 400), rng.randint(2, 60)
    name, name2 = rng.sample(NAMES, 2)
    return {
        "name": name,
        "name2": name2,
        "t": rng.choice(THINGS),
        "place": rng.choice(PLACES),
        "day": rng.choice(DAYS),
        "hour": rng.randint(1, 12),
        "minute": rng.randint(0, 59),
        "a": a,
        "b": b,
        "c": rng.randint(2, 99),
        "sum": a + b,
        "product": a * b,
        "more": a * b + a,
        "difference": a - b,
        "quotient": a / b,
    }


def note(rng: random.Random) -> str:
    """One to a few sentences."""
    pattern = rng.choice((rng.choice(SENTENCES), rng.choice(NOTES)))
    return pattern if pattern in SENTENCES else pattern.format(**_slots(rng))


def problem(rng: random.Random) -> tuple[str, str]:
    """An arithmetic story and a worked answer in its style. The answer need not fit the story."""
    slots = _slots(rng)
    return rng.choice(STORIES).format(**slots), rng.choice(WORKINGS).format(**slots)


def code(rng: random.Random) -> str:
    return rng.choice(CODE_LINES).format(**_slots(rng))


def passage(rng: random.Random, pieces: int) -> str:
    """`pieces` notes, workings and code lines in a row: text as long as is wanted."""
    parts = []
    for _ in range(pieces):
        draw = rng.random()
        parts.append(note(rng) if draw < 0.6 else problem(rng)[1] if draw < 0.85 else code(rng))
    return "\n".join(parts)
