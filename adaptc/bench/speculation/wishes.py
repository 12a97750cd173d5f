"""What is asked without a text: code, prose, and conversations; our own, and in no training set."""

from __future__ import annotations

CODE = (
    "Write a Python function that returns the second largest number of a list, and say what it does with duplicates.",
    "Write a Python class for a bank account with deposit, withdraw and a history of both.",
    "Write a Python function that turns a Roman numeral into a number, with a docstring and two examples.",
    "Write a Python function that merges overlapping intervals, given as a list of pairs.",
    "Write a Python script that counts the words of a text file and prints the ten most frequent ones.",
    "Write a Python function that checks whether brackets of three kinds are balanced in a text.",
    "Write a Python class for a queue of limited size that drops its oldest entry when it is full.",
    "Write a Python function that finds the shortest path between two places of a grid with walls.",
    "Write a Python function that reads a CSV file of names and ages and returns the mean age by first letter.",
    "Write a Python function that splits a list into chunks of a given size, and a test of it with pytest.",
    "Write a Python decorator that retries a function up to three times and waits longer each time.",
    "Write a Python function that formats a number of seconds as days, hours, minutes and seconds.",
)

FREE = (
    "Write a short story about a ferry that is late on the first day of spring.",
    "Explain to a child why the moon seems to change its shape.",
    "Describe a market in a small town early in the morning.",
    "Give arguments for and against working from home.",
    "Write a letter to a neighbour who plays the trumpet at night.",
    "Explain what a heat pump is and when it pays.",
    "Describe how you would teach somebody to ride a bicycle.",
    "Write a review of a restaurant that serves nothing but soup.",
    "What should one look for when buying a used car? Answer in some paragraphs.",
    "Tell the story of a clockmaker who lost his sense of time.",
    "Explain the difference between weather and climate, with an example.",
    "Write a speech for the opening of a library in a former railway station.",
)

CHATS = (
    (
        "Hello! I have three days in Lisbon. What should I see?",
        "Welcome! Three days are enough for Alfama, Belém and a day by the sea in Cascais.",
        "We travel with two small children. What would you change?",
    ),
    (
        "My tomato plants have yellow leaves. What is wrong?",
        "Yellow lower leaves often come from too much water or too little nitrogen. How often do you water them?",
        "Every evening, and they stand in pots without holes.",
    ),
    (
        "I want to learn to cook. Where should I begin?",
        "Begin with soups and eggs: they forgive mistakes and teach you about heat and salt.",
        "Good. Tell me how to make a simple vegetable soup.",
    ),
    (
        "Can you recommend a hobby for long winter evenings?",
        "Drawing, bookbinding or chess are quiet and need little space. Do you like to work with your hands?",
        "Yes, and I have an old desk that I could use.",
    ),
    (
        "I slept badly again.",
        "I am sorry to hear that. Do you go to bed at the same time every day?",
        "No, it depends on work. What else could I change?",
    ),
    (
        "What is a good present for somebody who has everything?",
        "Something that is used up, or time together: a dinner, a concert, a walk with a picnic.",
        "It is for my father, who likes trains. Do you have an idea?",
    ),
    (
        "How do I prepare for a job interview?",
        "Read about the company, think of three examples of your work, and have questions of your own.",
        "Which questions would make a good impression?",
    ),
    (
        "Our office printer says that it has no paper, but it has.",
        "The sensor may be dirty or the paper too far from the roller. Did you try the other tray?",
        "There is only one tray. What do I do next?",
    ),
)
"""Turns of a user and an assistant, the user's last."""
