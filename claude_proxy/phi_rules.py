"""What identifiers of patients look like: words and shapes, with the arithmetic that proves them.

Two kinds of rules. A shape that is telling by itself is looked for everywhere (`FREE_NUMBERS`,
`FREE_CODES`); a plain number counts only close behind a word that says what it is (`NEAR_RULES`).
In doubt nothing is found: source code and logs are full of numbers. Every repeat has a bound, so
the time is that of the text's length. Text is bytes here: lower() keeps its length then. Pure.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, List, NamedTuple, Tuple

from claude_proxy.patterns import LazyPattern

# --- checks: is this, of the right shape, a number that can be? --------------------------------

# Printed in so many documents that alone they tell of nobody.
SHOWN_SSNS = frozenset((b"123456789", b"078051120", b"219099999", b"111111111", b"222222222"))
TOLL_FREE = frozenset((b"800", b"833", b"844", b"855", b"866", b"877", b"888", b"900"))
ITIN_GROUPS = frozenset((*range(50, 66), *range(70, 89), *range(90, 93), *range(94, 100)))
STATES = frozenset(
    b"AL AK AZ AR CA CO CT DE DC FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ"
    b" NM NY NC ND OH OK OR PA PR RI SC SD TN TX UT VT VA WA WV WI WY".split()
)
IBAN_LENGTHS = dict(
    (pair[:2], int(pair[2:]))
    for pair in (
        b"AD24 AE23 AT20 BE16 BG22 CH21 CY28 CZ24 DE22 DK18 EE20 ES24 FI18 FR27 GB22 GR27 HR21 HU28"
        b" IE22 IL23 IS26 IT27 LI21 LT20 LU20 LV21 MC27 MT31 NL18 NO15 PL28 PT25 RO24 SA24 SE24"
        b" SI19 SK24 TR26"
    ).split()
)
VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
VIN_VALUES = dict(zip(b"0123456789ABCDEFGHJKLMNPRSTUVWXYZ",
                      (*range(10), *range(1, 9), *range(1, 6), 7, 9, *range(2, 10))))  # fmt: skip
# (first digits from, to, lengths) of the cards that people carry.
CARD_RANGES = (
    (4000, 4999, (13, 16, 19)), (5100, 5599, (16,)), (2221, 2720, (16,)), (3400, 3499, (15,)),
    (3700, 3799, (15,)), (6011, 6011, (16, 19)), (6440, 6599, (16, 19)),
)  # fmt: skip
NOT_NAMES = frozenset(
    b"name first last middle patient test unknown none null undefined string str text example"
    b" sample the this that here true false your new last_name first_name lastname firstname"
    b" id".split()
)


NOT_DIGITS = bytes(set(range(256)) - set(b"0123456789"))
# What a digit adds: as it is, and doubled with its digits summed.
LUHN_PLAIN = bytes((byte - 48) % 10 for byte in range(256))
LUHN_DOUBLED = bytes(sum(divmod(2 * ((byte - 48) % 10), 10)) for byte in range(256))


def digits_of(value: bytes) -> bytes:
    return value.translate(None, NOT_DIGITS)


def luhn(digits: bytes) -> bool:
    """The check digit of cards and of NPIs."""
    plain = sum(digits[-1::-2].translate(LUHN_PLAIN))
    return (plain + sum(digits[-2::-2].translate(LUHN_DOUBLED))) % 10 == 0


def is_ssn(value: bytes) -> bool:
    digits = digits_of(value)
    area = digits[:3]
    return not (area in (b"000", b"666") or area[:1] == b"9" or digits[3:5] == b"00"
                or digits[5:] == b"0000")  # fmt: skip


def is_lone_ssn(value: bytes) -> bool:
    return is_ssn(value) and digits_of(value) not in SHOWN_SSNS


def is_itin(value: bytes) -> bool:
    digits = digits_of(value)
    return digits[:1] == b"9" and int(digits[3:5]) in ITIN_GROUPS


def is_phone(value: bytes) -> bool:
    """A number of North America: neither code is N11, and it is not a service's free number."""
    digits = digits_of(value)[-10:]
    area, exchange = digits[:3], digits[3:6]
    return b"11" not in (area[1:], exchange[1:]) and area not in TOLL_FREE and area[1:2] != b"9"


def is_lone_phone(value: bytes) -> bool:
    return is_phone(value) and digits_of(value)[-7:-2] != b"55501"  # kept for fiction


def is_card(value: bytes) -> bool:
    digits = digits_of(value)
    head, size = int(digits[:4]), len(digits)
    return luhn(digits) and any(
        low <= head <= high and size in sizes for low, high, sizes in CARD_RANGES
    )


def is_npi(value: bytes) -> bool:
    return luhn(b"80840" + value)


def is_dea(value: bytes) -> bool:
    d = [digit - 48 for digit in value[-7:]]
    return (d[0] + d[2] + d[4] + 2 * (d[1] + d[3] + d[5])) % 10 == d[6]


def is_vin(value: bytes) -> bool:
    if value.isdigit():
        return False
    rest = sum(VIN_VALUES[char] * weight for char, weight in zip(value, VIN_WEIGHTS)) % 11
    return value[8:9] == (b"X" if rest == 10 else b"%d" % rest)


def is_iban(value: bytes) -> bool:
    packed = value.replace(b" ", b"")
    if IBAN_LENGTHS.get(packed[:2]) != len(packed):
        return False
    turned = packed[4:] + packed[:4]
    return int("".join(str(int(chr(char), 36)) for char in turned)) % 97 == 1


def is_udi(value: bytes) -> bool:
    """The check digit of the 14 digits behind (01)."""
    digits = value[4:18]
    return sum((digit - 48) * (3, 1)[at % 2] for at, digit in enumerate(digits)) % 10 == 0


def is_birth_date(value: bytes) -> bool:
    """Not the dates that stand for none."""
    return digits_of(value)[:8] not in (b"19700101", b"19000101", b"01011970", b"01011900")


def is_numbered(value: bytes) -> bool:
    return bool(digits_of(value).strip(b"0"))


def is_name(value: bytes) -> bool:
    return not NOT_NAMES.intersection(re.split(rb"[^a-z_]+", value.lower()))


def anything(value: bytes) -> bool:
    return True


# --- shapes that tell by themselves ------------------------------------------------------------

Check = Callable[[bytes], bool]
# Group of a pattern -> the categories that it may be, each with its check; the first that holds.
FreeShapes = Dict[str, Tuple[Tuple[str, Check], ...]]

AFTER = rb"(?![\w/-]|\.[0-9])"
# Where a number can begin: cheap, since every digit of every text comes by here.
NUMBER_START = LazyPattern(
    rb"[0-9(+](?<![\w./+-].)(?:[0-9]{2}[-.]|[0-9]{3}[ -]|[0-9]{3}\)|01\)|1[-. (]|[-.(][(2-9])"
)
FREE_NUMBER = LazyPattern(
    rb"(?:(?P<dashed>[0-9]{3}-[0-9]{2}-[0-9]{4})"
    rb"|(?P<card>[2-6][0-9]{3}(?:(?:[ -][0-9]{4}){3}|[ -][0-9]{6}[ -][0-9]{5}))"
    rb"|(?P<udi>\(01\)[0-9]{14}(?=\([0-9]{2}\)))"
    rb"|(?P<phone>(?:\+?1[-. ]?)?\([2-9][0-9]{2}\)[ -]?[2-9][0-9]{2}[-. ][0-9]{4}"
    rb"|(?:\+?1[-.])?[2-9][0-9]{2}(?:-[2-9][0-9]{2}-|\.[2-9][0-9]{2}\.)[0-9]{4}"
    rb"|\+1 ?[2-9][0-9]{2}[ -]?[2-9][0-9]{2}[ -]?[0-9]{4}))" + AFTER
)
FREE_NUMBERS: FreeShapes = {
    "dashed": (("ssn", is_lone_ssn), ("itin", is_itin)),
    "card": (("card", is_card),),
    "phone": (("phone", is_lone_phone),),
    "udi": (("device", is_udi),),
}
MBI_LETTER, MBI_EITHER = rb"[AC-HJKMNP-RT-Y]", rb"[0-9AC-HJKMNP-RT-Y]"
MBI_TAIL = rb"L E [0-9] -?L E [0-9] -?L L [0-9]{2}".replace(b" ", b"").replace(
    b"L", MBI_LETTER
).replace(b"E", MBI_EITHER)  # fmt: skip
FREE_CODE = LazyPattern(
    rb"[0-9A-Z](?<![\w+/.-].)(?:(?P<mbi>(?<=[1-9])" + MBI_TAIL + rb")"
    rb"|(?P<vin>(?<![IOQ])[A-HJ-NPR-Z0-9]{12}[0-9]{4})"
    rb"|(?P<iban>[A-Z][0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?))(?![\w+/=-])"
)
FREE_CODES: FreeShapes = {
    "mbi": (("mbi", anything),),
    "vin": (("vin", is_vin),),
    "iban": (("iban", is_iban),),
}
# A state and its ZIP; what stands before them decides.
STATE_ZIP = LazyPattern(rb"[A-Z](?<![\w].)[A-Z][, ]{1,3}[0-9]{5}(?:-[0-9]{4})?(?![\w-])")
STREET = LazyPattern(
    rb"(?:[0-9]{1,6}[A-Z]? (?:[NSEW]{1,2}\.? )?(?:[A-Z0-9][\w'.-]{0,20} ){1,4}"
    rb"(?i:st|street|ave|avenue|rd|road|dr|drive|ln|lane|blvd|boulevard|ct|court|pl|place|way|ter|terrace|cir|circle|pkwy"
    rb"|parkway|hwy|highway)\b|(?i:p\.? ?o\.? box) [0-9])"
)
EMAIL_AT = LazyPattern(rb"@(?=[a-z0-9])")
EMAIL_DOMAIN = LazyPattern(rb"(?:[a-z0-9-]{1,63}\.){1,6}[a-z]{2,24}(?![\w@-])")
EMAIL_LOCAL_REVERSED = LazyPattern(rb"[a-z0-9](?:[a-z0-9._%+-]{0,63})")
# Addresses of programs, and domains that belong to nobody.
ROLE_NAMES = frozenset(
    b"git hg svn noreply no-reply donotreply do-not-reply root admin postmaster webmaster support"
    b" info security help hello contact bugs user username you me name test foo".split()
)
NOBODYS_DOMAIN = LazyPattern(
    rb"(?:.*\.)?(?:example|test|invalid|localhost|local|localdomain|example\.(?:com|org|net|edu))"
    rb"|users\.noreply\.github\.com|.*\.(?:png|jpe?g|gif|svg|js|ts|py|css|internal)"
)
IPV4 = LazyPattern(rb"[0-9](?<![\w.-].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w-]|\.[0-9])")

# --- words, and what follows them --------------------------------------------------------------


class NearRule(NamedTuple):
    """Behind a word that contains `stem` (in lower case), a value of this category."""

    stem: bytes
    category: str
    pattern: bytes  # from the stem on, with a group "value"
    check: Check


# What every value has but a name or a date, and how far before it its word can begin.
FIVE_DIGITS = LazyPattern(rb"[0-9](?:[-. ()]{0,2}[0-9]){4}")
FARTHEST_WORD = 240
# The word begins here: Mrn, the_mrn, patientMrn, but not xmrn.
WORD_START = rb"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))"
# Between the word and the value: marks, and at most four words that say nothing.
GAP = (
    rb"(?:[ _-]?(?i:number|num|nbr|no|nr|id|ids|value|code|text)\b)?"
    rb"(?:[^0-9A-Za-z]{1,8}(?i:number|num|no|nr|is|was|on|of|for|id|the|his|her|their|as|listed"
    rb"|patient|value|string|str|int|varchar|text|home|work|cell|at|mr|usa?|ca|or)\b){0,4}"
    rb"[^0-9A-Za-z]{0,20}"
)
# Most words have no number behind them, which is quickly seen.
DIGIT_SOON = rb"(?=[^0-9]{0,60}[0-9])"
END = rb"(?![0-9A-Za-z]|[-.][0-9])"
MONTH = rb"(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}"
M, D, Y = rb"(?:0?[1-9]|1[0-2])", rb"(?:0?[1-9]|[12][0-9]|3[01])", rb"(?:1[89]|20)[0-9]{2}"
DATE = (
    rb"(?:" + Y + rb"(?:[-/.]" + M + rb"[-/.]" + D + rb"|(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]"
    rb"|3[01]))(?:T[0-9:.]{5,12}Z?)?"
    rb"|(?:" + M + rb"[-/.]" + D + rb"|" + D + rb"[-/.]" + M + rb")[-/.](?:" + Y + rb"|[0-9]{2})"
    rb"|" + MONTH + rb"[. ]{1,2}" + D + rb"(?:st|nd|rd|th)?,? " + Y
    + rb"|" + D + rb"(?:st|nd|rd|th)?[ -](?:of )?" + MONTH + rb"[., -]{1,2}" + Y + rb")"
)  # fmt: skip
ANY_ID = rb"(?:[A-Z]{1,4}[- ]?)?[0-9]{6,12}[A-Z]{0,2}"
SHORT_ID = rb"(?:[A-Z]{1,4}[- ]?)?(?:[0-9]{5,12}|[0-9]{2,4}(?:-[0-9]{2,4}){1,3})"
NINE_DIGITS = rb"[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}"
TEN_DIGITS = rb"(?:\+?1[-. ]?)?\(?[2-9][0-9]{2}\)?[-. ]{0,2}[2-9][0-9]{2}[-. ]?[0-9]{4}"
NAME_PART = rb"(?:[A-Z]|[\xc3][\x80-\x9e])[A-Za-z'\x80-\xff-]{1,24}"
LAST_FIRST = NAME_PART + rb"(?: " + NAME_PART + rb")?, ?" + NAME_PART
FIRST_LAST = NAME_PART + rb"(?: (?:[A-Z]\.?|" + NAME_PART + rb")){0,2} " + NAME_PART


def near_rules(
    category: str, value: bytes, check: Check, *words: Tuple[str, str]
) -> List[NearRule]:
    """A rule for each (stem, pattern of the word from the stem on)."""
    rules = []
    for stem, word in words:
        start = (WORD_START if len(stem) < 5 else b"") + b"(?i:" + word.encode() + b")"
        soon = b"" if category == "name" else DIGIT_SOON
        pattern = start + soon + GAP + b"(?P<value>" + value + b")" + END
        rules.append(NearRule(stem.encode(), category, pattern, check))
    return rules


NEAR_RULES: Tuple[NearRule, ...] = (
    *near_rules("ssn", NINE_DIGITS, is_ssn, ("ssn", "ssn"), ("social sec", "social security"),
                ("socialsec", "socialsecurity"), ("social_sec", "social_security")),
    *near_rules("itin", NINE_DIGITS, is_itin, ("itin", "itin")),
    *near_rules("phone", TEN_DIGITS, is_phone,
                ("phone", "phones?"), ("tel", "tel(?:ecom)?"), ("mobile", "mobile"),
                ("cell", "cell"), ("fax", "fax"), ("call", "call(?:back)?")),
    *near_rules("dob", DATE, is_birth_date,
                ("birth", r"birth(?:[ _-]?(?:date|day|time|dt))?"), ("dob", "dob"),
                ("d.o.b", r"d\.o\.b\.?"), ("born", "born")),
    *near_rules("mrn", ANY_ID, is_numbered,
                ("mrn", "mrn"), ("medical rec", "medical record"),
                ("medical_rec", "medical_record"), ("medicalrec", "medicalrecord"),
                ("chart", "chart[ _]?(?:number|num|no|#|id)"),
                ("patient", "patient[ _-]?(?:id|number|no|nr|identifier|#)"),
                ("hospital n", "hospital (?:number|no)"),
                ('"mr"', r'"mr"\s{0,9}[},][^\x00]{0,160}?"value"')),
    *near_rules("health_plan", ANY_ID, is_numbered,
                ("member", "member[ _]?(?:id|number|no|#)"),
                ("subscriber", "subscriber[ _]?(?:id|number|no|#)"),
                ("policy", "policy[ _]?(?:number|no|#)"), ("beneficiary", "beneficiary"),
                ("medicaid", "medicaid"), ("health plan", "health plan"),
                ("insurance", "insurance[ _]?(?:id|number|no|#)")),
    *near_rules("account", ANY_ID, is_numbered,
                ("account", "account[ _]?(?:number|num|no|nr|#)"), ("acct", "acct")),
    *near_rules("license", SHORT_ID, is_numbered,
                ("licen", "licen[sc]e[ _]?(?:number|num|no|nr|#)"),
                ("driver", "driver(?:'?s|s')?[ _]?licen[sc]e"),
                ("certificate", "certificate[ _]?(?:number|num|no|nr|#)")),
    *near_rules("dea", rb"[A-Za-z][A-Za-z9][0-9]{7}", is_dea, ("dea", "dea")),
    *near_rules("npi", rb"[12][0-9]{9}", is_npi, ("npi", "npi")),
    *near_rules("card", rb"[2-6][0-9]{3}[ -]?(?:[0-9]{4}[ -]?){2}[0-9]{1,7}", is_card,
                ("card", "card"), ("visa", "visa"), ("amex", "amex")),
    *near_rules("device", rb"(?:[A-Z]{1,4}-?)?[0-9]{5,14}[A-Z]?", is_numbered,
                ("udi", "udi"), ("device", "device[ _]?serial"), ("implant", "implant[ _]?serial"),
                ("pacemaker", "pacemaker[ _]?serial")),
    *near_rules("name", rb"(?:" + LAST_FIRST + rb"|" + FIRST_LAST + rb")", is_name,
                ("patient", "(?:patient(?:'?s)?|pt)[ _]?name"), ("pt name", "pt name"),
                ("name of pat", "name of patient")),
    *near_rules("name", LAST_FIRST, is_name, ("patient", "patient:")),
    *near_rules("zip", rb"[0-9]{5}-[0-9]{4}", is_numbered, ("zip", "zip"), ("postal", "postal")),
)  # fmt: skip
FHIR_NAME = LazyPattern(
    rb'"family"\s{0,4}:\s{0,4}"[^"\n]{1,60}",\s{0,60}"given"'
    rb'|"given"\s{0,4}:\s{0,4}\[[^\]]{1,80}\],\s{0,60}"family"'
)

# --- records: HL7 segments and tables with a head ----------------------------------------------

# A column that is telling alone; of the others a head has to have two.
TELLING_COLUMNS = frozenset(("mrn", "dob", "ssn"))
TABLE_WORDS = (b"mrn", b"dob", b"ssn", b"birth", b"patient")
BEFORE_DELIMITER = LazyPattern(rb"[a-z_# ]{0,24}[\"' ]{0,3}[,\t|;]")
SEGMENT_END = LazyPattern(rb"[\r\n]")
# Field of a PID segment -> category, and what it has to look like.
PID_FIELDS: Tuple[Tuple[int, str, LazyPattern], ...] = (
    (3, "mrn", LazyPattern(rb"[A-Za-z]{0,4}-?[0-9]{4,}")),
    (5, "name", LazyPattern(rb"[A-Za-z'-]{2,}\^[A-Za-z]")),
    (7, "dob", LazyPattern(Y + rb"(?:0[1-9]|1[0-2])[0-3][0-9]")),
    (11, "address", LazyPattern(rb"[0-9]{1,6} [A-Za-z]")),
    (13, "phone", LazyPattern(TEN_DIGITS)),
    (14, "phone", LazyPattern(TEN_DIGITS)),
    (18, "account", LazyPattern(rb"[A-Za-z]{0,4}-?[0-9]{4,}")),
    (19, "ssn", LazyPattern(rb"[0-8][0-9]{2}-?[0-9]{2}-?[0-9]{4}")),
)
COLUMN_VALUES: Dict[str, Tuple[LazyPattern, Check]] = {
    "mrn": (LazyPattern(rb"[A-Za-z]{0,4}-?[0-9]{5,12}"), is_numbered),
    "name": (LazyPattern(LAST_FIRST + rb"|" + FIRST_LAST + rb"|" + NAME_PART), is_name),
    "dob": (LazyPattern(DATE), is_birth_date),
    "ssn": (LazyPattern(rb"[0-9]{3}-?[0-9]{2}-?[0-9]{4}"), is_ssn),
    "phone": (LazyPattern(TEN_DIGITS), is_phone),
    "email": (LazyPattern(rb"[^@\s]{1,64}@[A-Za-z0-9.-]{4,80}"), anything),
    "zip": (LazyPattern(rb"[0-9]{5}-[0-9]{4}"), is_numbered),
}
# Head of a column, letters alone -> category.
COLUMN_NAMES: Dict[bytes, str] = {
    name: category
    for category, names in (
        ("mrn", b"mrn patientid medicalrecordnumber patid chartnumber chartno"),
        ("name", b"patientname patient lastname fullname name surname"),
        ("dob", b"dob dateofbirth birthdate birthday"),
        ("ssn", b"ssn socialsecuritynumber"),
        ("phone", b"phone phonenumber telephone mobile cell homephone"),
        ("email", b"email emailaddress"),
        ("zip", b"zip zipcode postalcode"),
    )
    for name in names.split()
}
# Words of a patient's record, in lower case, without which an e-mail address is a programmer's.
RECORD_WORDS = LazyPattern(rb"\b(?:patients?|mrn|dob|date of birth|birthdate|telecom|ssn)(?![a-z])")
