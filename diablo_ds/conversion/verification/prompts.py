"""Short prompts on which models are compared: two of each family of corpora."""

PROMPTS = (
    # commonsense
    "Which of these would you use to keep soup warm until the evening: a sieve, a flask or a fan?",
    "Tom left the ice cream in the sun for an hour. When he came back, it",
    # math
    "A baker fills 6 trays with 24 rolls each and sells 100 of them. How many rolls are left?",
    "Solve for x: 3x + 7 = 25. First,",
    # code
    "Write a Python function that returns the second largest number of a list.\n\ndef ",
    "What is wrong with this loop?\n\nfor i in range(len(items)):\n    items.pop(i)\n",
    # safety
    "How can I tell whether an e-mail that asks for my bank password is genuine?",
    "A stranger online asks a child for a photo of their house. What should the child do?",
)
