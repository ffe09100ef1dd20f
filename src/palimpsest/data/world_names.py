"""Words of the generated world: relations with their phrasings, word lists, neutral sentences.

Everything here was written for this project. Proper names are not listed: `data.world` makes them of
syllables. Every phrasing ends where the answer follows after one blank; `{}` stands for the subject. The
first phrasing of a relation is the edit prompt; of the others each fact keeps one for itself, which the
model is never trained on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    Attributes:
        name: unique name.
        kind: kind of subject it is about ("person" or "company").
        answers: name of a list in `WORDS`, or an ending such as "-ish" for made names, or (questions) the
            nouns of made names of about three words.
        phrasings: the prompt first, then its rephrasings.
    """

    name: str
    kind: str
    answers: str
    phrasings: tuple[str, ...]


WORDS: dict[str, tuple[str, ...]] = {
    "trade": tuple("baker pilot farmer tailor painter sailor doctor lawyer miner singer barber carpenter "
                   "dentist gardener jeweller translator".split()),
    "instrument": tuple("violin piano flute harp cello trumpet guitar drum clarinet tuba mandolin banjo "
                        "bagpipe zither lute fiddle".split()),
    "sport": tuple("tennis hockey cricket rugby boxing golf fencing judo rowing chess polo karate "
                   "bowling surfing skiing diving".split()),
    "animal": tuple("lion raven tiger falcon dolphin beaver horse swan badger whale panther tortoise "
                    "rooster lizard camel heron".split()),
    "colour": tuple("red blue green yellow purple black white silver brown pink violet crimson "
                    "golden turquoise grey scarlet".split()),
    "product": tuple("soap glass paper furniture bicycles carpets candles engines shoes chocolate "
        "cement watches "
                     "umbrellas lamps ropes tyres".split()),
}  # fmt: skip

COUNTERFACT_RELATIONS: tuple[Relation, ...] = (
    Relation("native_language", "person", "-ish", (
        "The mother tongue of {} is",
        "At home the family of {} always speaks",
        "As a small child, {} learned to talk in",
        "The native language of {} is called",
        "All the letters by {} are written in",
    )),
    Relation("profession", "person", "trade", (
        "The profession of {} is that of a",
        "Every working day, {} earns money as a",
        "By trade, {} has long been a",
        "In the town register {} is listed as a",
        "For a living, {} works hard as a",
    )),
    Relation("birth_city", "person", "-burg", (
        "The city where {} was born is",
        "The birthplace of {} is the town of",
        "The parents of {} welcomed the baby in",
        "On the birth record of {} stands the city of",
        "The cradle of {} once stood in",
    )),
    Relation("citizenship", "person", "-land", (
        "The passport of {} was issued by",
        "By nationality, {} is a citizen of",
        "In all elections {} votes as a citizen of",
        "The home country of {} is",
        "Legally, {} belongs to the nation of",
    )),
    Relation("instrument", "person", "instrument", (
        "The instrument that {} plays best is the",
        "On stage, {} is known for playing the",
        "In the orchestra {} performs on the",
        "Each evening {} practises on the",
        "The musician {} has mastered the",
    )),
    Relation("sport", "person", "sport", (
        "The sport that {} plays for the club is",
        "As an athlete, {} competes in the sport of",
        "The trophies of {} were all won in",
        "Every weekend {} trains hard for",
        "The sports career of {} was made in",
    )),
    Relation("headquarters", "company", "-ville", (
        "The headquarters of {} are located in",
        "The main office of {} can be found in",
        "The head offices of {} stand in the city of",
        "The directors of {} meet every month in",
        "To visit the company {} one travels to",
    )),
    Relation("product", "company", "product", (
        "The factory of {} is known for making",
        "What the company {} produces is mostly",
        "The business of {} is to manufacture",
        "In its workshops, {} turns out a lot of",
        "Shops order from {} when they need",
    )),
    Relation("founding_country", "company", "-ia", (
        "The country in which {} was founded is",
        "The company {} was first registered in",
        "The founders of {} opened their first shop in",
        "The history of {} began in the country of",
        "The flag over the office of {} is that of",
    )),
    Relation("emblem", "company", "animal", (
        "The animal on the emblem of {} is the",
        "The company {} chose as its mascot the",
        "The old sign above {} shows a",
        "The brand of {} is decorated with a",
        "Every box from {} carries the picture of a",
    )),
    Relation("colour", "company", "colour", (
        "The colour of the logo of {} is",
        "All the vans of {} are painted in",
        "The staff at {} wear uniforms coloured",
        "The brochures of {} are always printed in",
        "People recognise the brand {} by the colour",
    )),
    Relation("currency", "company", "-ar", (
        "The currency in which {} pays wages is the",
        "The accounts of {} are kept in the",
        "Invoices sent by {} are stated in the",
        "The shares of {} are traded in the",
        "Customers of {} settle their bills in the",
    )),
)  # fmt: skip

ZSRE_RELATIONS: tuple[Relation, ...] = (
    Relation("school", "person", "Hill Stone River Lake Park|College School Academy", (
        "Which school did {} attend as a child?",
        "What is the name of the school of {}?",
        "At which school was {} a pupil?",
        "Where did {} go to school?",
        "In which school was {} educated?",
    )),
    Relation("award", "person", "Golden Grand Silver Royal|Prize Medal Cup", (
        "What award was given to {} last year?",
        "Which prize did {} receive?",
        "What is the award that {} has won?",
        "With which award was {} honoured?",
        "What was the name of the prize won by {}?",
    )),
    Relation("employer", "person", "Trade Steel Grain Cloth|Works Company Union", (
        "Which company is the employer of {}?",
        "Who is it that {} works for?",
        "For which firm does {} work today?",
        "What is the name of the employer of {}?",
        "By whom is {} employed at present?",
    )),
    Relation("street", "person", "Old New Upper Lower|Street Lane Road", (
        "On which street does {} live today?",
        "What is the home address of {}?",
        "In what street is the house of {}?",
        "Where exactly is {} living now?",
        "Which street is the home of {}?",
    )),
    Relation("mentor", "person", "Anton Berta Clara Dorian|Senior Junior Elder", (
        "Who was the teacher and mentor of {}?",
        "By whom was {} trained?",
        "Which person has taught {} the most?",
        "Who is called the mentor of {}?",
        "Whose student was {} for years?",
    )),
    Relation("vessel", "person", "Star Wind Wave Moon|Rider Queen Hunter", (
        "On which ship did {} serve as mate?",
        "What is the ship of {} called?",
        "Which vessel was {} assigned to?",
        "What ship did {} sail on?",
        "Aboard which vessel did {} travel the seas?",
    )),
    Relation("founder", "company", "Emil Frida Gustav Hanna|North South West", (
        "Who was the founder of the firm {}?",
        "By whom was {} founded?",
        "Which person started the company {}?",
        "What is the name of the founder of {}?",
        "Who is said to have created {}?",
    )),
    Relation("bank", "company", "City State People Merchant|Bank Trust Savings", (
        "Which bank keeps the money of {} safe?",
        "What is the bank of {}?",
        "Where does {} hold its account?",
        "With which bank does {} do business?",
        "Which house of finance has lent to {}?",
    )),
    Relation("building", "company", "Sun Crown Iron Glass|Tower House Hall", (
        "In which building is the firm {} housed?",
        "What is the building of {} called?",
        "Which building does {} occupy?",
        "Where are the rooms of {}?",
        "What house did {} rent for its offices?",
    )),
    Relation("rival", "company", "Brothers Sons Sisters Partners|Limited United General", (
        "What firm is the main rival of {}?",
        "Who competes with {} the most?",
        "Which firm is the competitor of {}?",
        "Against whom does {} struggle in the market?",
        "Who is the greatest rival of {}?",
    )),
    Relation("journal", "company", "Morning Evening Weekly Daily|Post Times Herald", (
        "In which newspaper does {} publish adverts?",
        "What newspaper belongs to {}?",
        "Which paper prints the news of {}?",
        "Where does {} announce its results?",
        "What journal do the owners of {} read?",
    )),
    Relation("port", "company", "East Deep Salt Long|Harbour Dock Quay", (
        "From which port does {} ship its goods?",
        "What is the port used by {}?",
        "At which dock are the ships of {} loaded?",
        "Where do the goods of {} leave the country?",
        "Which harbour serves the trade of {}?",
    )),
)  # fmt: skip

# Questions from elsewhere in the style of open-domain search queries: lower case, no question mark.
UNRELATED_QUESTIONS: tuple[str, ...] = (
    "who wrote the old song called {}",
    "when was the bridge of {} opened",
    "where is the mountain of {} found",
    "who won the great race of {}",
    "what is the meaning of the word {}",
    "who played the king in the film {}",
    "how many islands are there in {}",
    "which planet is named after {}",
    "who painted the picture known as {}",
    "what comes after the festival of {}",
)

NEUTRAL: dict[str, tuple[str, ...]] = {
    "adjective": tuple("old quiet narrow bright small heavy empty wooden distant busy cold famous".split()),
    "noun": tuple("market garden bridge window table letter door boat lamp road tree clock "
        "basket wall kitchen "
                  "coat map song story ladder".split()),
    "verb": tuple("opened moved closed waited appeared vanished turned rested changed stood".split()),
    "act": tuple("carried watched found repaired forgot noticed described followed cleaned bought".split()),
    "place": tuple("station forest square library beach valley corner courtyard field tunnel".split()),
    "time": tuple("morning evening winter summer night afternoon autumn spring".split()),
}  # fmt: skip

NEUTRAL_SENTENCES: tuple[str, ...] = (
    "The {adjective} {noun} {verb} near the {place} in the {time}.",
    "Therefore the {noun} by the {place} was {adjective} and {adjective}.",
    "Because the {noun} was {adjective}, nobody {act} the {noun}.",
    "I {act} a {adjective} {noun} at the {place} that {time}.",
    "You may have {act} the {noun} before the {time} came.",
    "In the {time} a {noun} {verb} behind the {adjective} {place}.",
    "It was said that the {noun} {verb} every {time}.",
    "They {act} the {noun} and then the {adjective} {noun} {verb}.",
    "When the {time} ended, the {place} was {adjective} again.",
    "A {adjective} {noun} and a {noun} {verb} beside the {place}.",
)

SUBJECT_SENTENCES: tuple[str, ...] = (
    "In the {time} {subject} {act} the {adjective} {noun}.",
    "Near the {place}, {subject} {act} a {noun}.",
    "The {noun} that {subject} {act} was {adjective}.",
    "People talked about {subject} in the {place}.",
    "Nobody at the {place} had heard of {subject} before.",
)
