"""Synthetic texts with and without identifiers of patients; nobody real is in them. Deterministic.

Each text is made of a template and made-up values. Templates are split, not texts: the rules were
tuned on the development half only, so the held-out half shows what they do with forms of writing
that nobody looked at. `samples(True)` is the held-out half.
"""

from __future__ import annotations

import hashlib
import random
import uuid
from typing import Callable, Dict, FrozenSet, List, NamedTuple, Tuple


class Sample(NamedTuple):
    text: str
    categories: FrozenSet[str]  # what is in it


# --- values ----------------------------------------------------------------------------------------

FIRST = "Maria James Aisha Wei Olivia Carlos Priya Thomas Ingrid Samuel Chloe Rafael Nora Victor Hannah Leon".split()
LAST = "Alvarez Bennett Chowdhury Dubois Eriksen Fitzgerald Gutierrez Hoffman Ibrahim Jankowski Kowalski Larsen O'Brien Nakamura".split()
STREETS = "Maple Oak Willow Jefferson Sunset Lincoln Cedar Hickory Valencia Prospect".split()
SUFFIXES = "Street St Avenue Ave Rd Drive Lane Blvd Court Way".split()
TOWNS = (("Dayton", "OH", 45402), ("Fresno", "CA", 93701), ("Tulsa", "OK", 74103), ("Albany", "NY", 12207), ("Mesa", "AZ", 85201), ("Salem", "OR", 97301))
MONTHS = "January February March April May June July August September October November December".split()


def number(r: random.Random, size: int) -> str:
    return str(r.randrange(1, 10)) + "".join(str(r.randrange(10)) for _ in range(size - 1))


def luhn_digit(body: str) -> str:
    for digit in "0123456789":
        total = sum(sum(divmod(int(d) * (1 + at % 2), 10)) for at, d in enumerate((body + digit)[::-1]))
        if total % 10 == 0:
            return digit
    raise AssertionError


def ssn(r):
    area = r.choice([101, 219, 305, 412, 520, 618, 733, 890]) + r.randrange(5)
    return f"{area}-{r.randrange(1, 100):02}-{r.randrange(1, 10000):04}"


def itin(r):
    return f"9{r.randrange(100):02}-{r.choice([50, 62, 71, 80, 88, 90, 94]):02}-{r.randrange(10000):04}"


def phone_parts(r):
    return r.choice("206 312 404 415 503 617 713 919".split()), str(r.randrange(220, 989)).replace("11", "12"), f"{r.randrange(10000):04}"


def phone(r):
    a, b, c = phone_parts(r)
    return r.choice([f"({a}) {b}-{c}", f"{a}-{b}-{c}", f"{a}.{b}.{c}", f"+1 {a} {b} {c}", f"1-{a}-{b}-{c}", f"({a}){b}-{c}"])


def plain_phone(r):
    return "".join(phone_parts(r))


def birth(r):
    y, m, d = r.randrange(1931, 2020), r.randrange(1, 13), r.randrange(2, 29)
    name = MONTHS[m - 1]
    return r.choice([f"{y}-{m:02}-{d:02}", f"{m:02}/{d:02}/{y}", f"{m}/{d}/{y % 100:02}", f"{name} {d}, {y}", f"{d} {name[:3]} {y}", f"{m}-{d}-{y}", f"{d:02}.{m:02}.{y}"])


def iso_birth(r):
    return f"{r.randrange(1931, 2020)}-{r.randrange(1, 13):02}-{r.randrange(2, 29):02}"


def mrn(r):
    return r.choice([number(r, 7), number(r, 8), "00" + number(r, 6), "H" + number(r, 7), "MR" + number(r, 6)])


def mbi(r):
    a, e = "ACDEFGHJKMNPQRTUVWXY", "ACDEFGHJKMNPQRTUVWXY0123456789"
    text = "".join([str(r.randrange(1, 10)), r.choice(a), r.choice(e), str(r.randrange(10)), r.choice(a), r.choice(e), str(r.randrange(10)), r.choice(a), r.choice(a), number(r, 2)])
    return r.choice([text, f"{text[:4]}-{text[4:7]}-{text[7:]}"])


def plan(r):
    return r.choice(["XYA", "W", "", "ABH"]) + number(r, 9)


def account(r):
    return number(r, r.choice([8, 10, 12]))


def license_id(r):
    return r.choice([r.choice("ABDFS") + number(r, 7), number(r, 8), "MD" + number(r, 6)])


def dea(r):
    d = [r.randrange(10) for _ in range(6)]
    return r.choice("ABFM") + r.choice("ABCDEFG") + "".join(map(str, d)) + str((d[0] + d[2] + d[4] + 2 * (d[1] + d[3] + d[5])) % 10)


def npi(r):
    body = "1" + number(r, 8)
    return body + luhn_digit("80840" + body)


def card(r):
    prefix, size = r.choice([("4", 16), ("52", 16), ("37", 15), ("6011", 16)])
    body = prefix + number(r, size - len(prefix) - 1)
    full = body + luhn_digit(body)
    sep = r.choice(["-", " "])
    return f"{full[:4]}{sep}{full[4:10]}{sep}{full[10:]}" if size == 15 else sep.join(full[at:at + 4] for at in range(0, 16, 4))


def plain_card(r):
    return card(r).replace("-", "").replace(" ", "")


def iban(r):
    bban = number(r, 18)
    check = 98 - int(bban + "131400") % 97
    text = f"DE{check:02}{bban}"
    return r.choice([text, " ".join(text[at:at + 4] for at in range(0, 22, 4))])


def vin(r):
    values = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", (1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 7, 9, 2, 3, 4, 5, 6, 7, 8, 9)))
    chars = list(r.choice(["1HGCM8263", "2T1BURHE0", "5YJSA1E22", "WBA3A5C57"]) + r.choice("ABCDEFG") + r.choice("ABCPRS") + number(r, 6))
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    rest = sum((int(c) if c.isdigit() else values[c]) * w for c, w in zip(chars, weights)) % 11
    chars[8] = "X" if rest == 10 else str(rest)
    return "".join(chars)


def udi(r):
    body = "0" + number(r, 12)
    total = sum(int(d) * (3 if at % 2 == 0 else 1) for at, d in enumerate(body))
    return f"(01){body}{(10 - total % 10) % 10}(17){number(r, 6)}(21){number(r, 7)}"


def serial(r):
    return r.choice(["PJN", "", "BLC-"]) + number(r, 7)


def first_last(r):
    return r.choice([f"{r.choice(FIRST)} {r.choice(LAST)}", f"{r.choice(FIRST)} {r.choice('ABCKLM')}. {r.choice(LAST)}"])


def last_first(r):
    name = f"{r.choice(LAST)}, {r.choice(FIRST)}"
    return r.choice([name, name, name.upper()])


def address(r):
    town, state, code = r.choice(TOWNS)
    unit = r.choice(["", "", ", Apt 4B", " Unit 12", " #301"])
    return f"{r.randrange(10, 9999)} {r.choice(STREETS)} {r.choice(SUFFIXES)}{unit}, {town}, {state} {code + r.randrange(9)}"


def zip4(r):
    _, state, code = r.choice(TOWNS)
    return f"{code}-{number(r, 4)}"


def email(r):
    return f"{r.choice(FIRST).lower()}{r.choice(['.', '_', ''])}{r.choice(LAST).lower().replace(chr(39), '')}{r.choice(['', '82'])}@{r.choice(['gmail.com', 'yahoo.com', 'outlook.com', 'mail.comcast.net'])}"


def hl7_name(r):
    return f"{r.choice(LAST)}^{r.choice(FIRST)}^{r.choice('ABC')}".upper()


def town_line(r):
    town, state, code = r.choice(TOWNS)
    return f"{r.randrange(10, 9999)} {r.choice(STREETS).upper()} ST^^{town.upper()}^{state}^{code}"


VALUES: Dict[str, Callable] = {f.__name__: f for f in (
    ssn, itin, phone, plain_phone, birth, iso_birth, mrn, mbi, plan, account, license_id, dea, npi, card, plain_card,
    iban, vin, udi, serial, first_last, last_first, address, zip4, email, hl7_name, town_line)}

# --- texts with identifiers: (categories, templates); {name} is a value, {name:d} its digits alone ------

POSITIVES: Tuple[Tuple[str, Tuple[str, ...]], ...] = (
    ("ssn", (
        "Pt states SSN is {ssn}, verified against card.", "Social Security Number: {ssn:d}", "# TODO remove: real record {ssn} used while debugging eligibility",
        '{{"ssn": "{ssn:d}", "status": "active"}}', "<ssn>{ssn}</ssn>", "id;ssn;ward\n1;{ssn};4E", "Subject: eligibility\n\nHer social security no. is {ssn}. Please correct the claim.",
        "INSERT INTO people VALUES (17, '{ssn}', 'F');", "ssn={ssn:d}&ward=4E", "patient_ssn: {ssn:d}", "SS# {ssn} on file", "assert lookup('{ssn}') is not None")),
    ("itin", ("ITIN {itin} given in place of SSN", "itin: {itin:d}", "Taxpayer ID (ITIN): {itin}", '{{"tax_id": "{itin}"}}', "Filed under {itin} this year.", "her ITIN is {itin:d}")),
    ("phone", (
        "Called patient at {phone}, left voicemail.", "Home phone: {plain_phone}", '{{"telecom": [{{"system": "phone", "value": "{phone}", "use": "home"}}]}}', "Emergency contact (daughter) {phone}",
        "cell {plain_phone}, prefers texts", "// callback number from ticket: {phone}", "Fax results to {phone} attn. cardiology", '"mobile_number": "{plain_phone}"', "Pharmacy: {phone}",
        "NK1|1|NUESSE^ANN|SPO||{phone}", "1,{phone},no answer\n2,{phone},ok", "Tel. {phone} (work)", "mobile={plain_phone}", "Reach him on {phone} after 5 pm")),
    ("email", (
        "Patient portal login: {email}", "Patient prefers e-mail: {email}", '{{"resourceType": "Patient", "telecom": [{{"system": "email", "value": "{email}"}}]}}', "pt MRN on chart, email {email}",
        "mrn_known,email\nyes,{email}", "Please send the patient's summary to {email}", "The patient (cc {email}) asks for a refill.", "contact for this patient is {email}")),
    ("dob", (
        "DOB: {birth}", "Date of Birth {birth}", "67 y/o male born {birth} presents with chest pain", '{{"resourceType": "Patient", "birthDate": "{iso_birth}"}}', "birth_date = '{iso_birth}'",
        "<birthTime value=\"{iso_birth:d}\"/>", "D.O.B. {birth}", "dob={iso_birth}", "The patient was born on {birth} in Dayton.", "const fixture = {{ dateOfBirth: '{iso_birth}' }};", "Birthdate ........ {birth}",
        "DOB/Sex: {birth} F", "study_id,dob,sex,ssn_ok\n7,{iso_birth},F,y", "Birthday: {birth}")),
    ("mrn", (
        "MRN: {mrn}", "MRN {mrn} admitted to 4E", "Medical Record Number: {mrn}", '{{"mrn": "{mrn}"}}', "patient_id={mrn}", "Patient ID: {mrn}", "Chart #: {mrn}", "chart no. {mrn}", "-- select for mrn = '{mrn}'",
        '{{"identifier": [{{"type": {{"coding": [{{"code": "MR"}}]}}, "system": "urn:oid:1.2", "value": "{mrn}"}}]}}', "mrn,ward,dob_known\n{mrn},4E,y\n{mrn},5W,n", "Medical record no {mrn} was merged.",
        "patientId: '{mrn}'", "Hospital number {mrn}", "MRN#{mrn}", "ID/MRN: {mrn}")),
    ("mbi", ("Medicare MBI {mbi}", "Medicare number: {mbi}", '{{"mbi": "{mbi}"}}', "claim,{mbi},paid", "<beneficiary>{mbi}</beneficiary>", "She showed card {mbi} at check-in", "# sample from prod: {mbi}", "NM1*IL*1*S***MI*{mbi}~")),
    ("health_plan", (
        "Member ID: {plan}", "Insurance ID {plan}", '{{"subscriberId": "{plan}"}}', "Policy No. {plan}", "Medicaid ID: {plan}", "health plan number {plan}", "subscriber_id={plan}", "Insurance: Aetna, member number {plan}",
        "Subscriber # {plan}", "memberId: '{plan}',", "policy_number,{plan}", "Medicaid {plan}")),
    ("account", (
        "Account number: {account}", "Patient acct # {account}", '{{"accountNumber": "{account}"}}', "Acct No: {account}", "account_no={account}", "Billing account number is {account}", "acct {account} past due", "bank account no. {account}")),
    ("license", (
        "Driver's license {license_id}", "Driver License No: {license_id}", "License number: {license_id}", "drivers_license = '{license_id}'", "Certificate number {license_id}", "Licence no. {license_id} (RN)", "license_number={license_id}",
        "Birth certificate no. {license_id}")),
    ("dea", ("DEA# {dea}", "DEA number: {dea}", '{{"dea": "{dea}"}}', "Prescriber DEA {dea}", "dea_no={dea}", "Dr. Hoffman (DEA {dea})")),
    ("npi", ("NPI {npi}", "NPI: {npi}", '{{"npi": "{npi}"}}', "npi_number={npi}", "provider_npi,{npi}", "Referring NPI# {npi}", "http://hl7.org/fhir/sid/us-npi value={npi}")),
    ("card", ("Paid copay with {card}", "Card number: {plain_card}", '{{"card": "{plain_card}"}}', "visa {plain_card} exp 04/29", "cc on file {card}", "credit_card={plain_card}", "Charge {card} for the visit", "payment,{card},ok")),
    ("iban", ("IBAN {iban}", '{{"iban": "{iban}"}}', "Refund to {iban}", "transfer,{iban},EUR", "Bank: {iban}")),
    ("vin", ("VIN {vin}", "Ambulance vehicle {vin}", '{{"vin": "{vin}"}}', "crash report: vehicle {vin}, driver belted", "vehicle_id={vin}", "VIN: {vin}")),
    ("device", ("UDI {udi}", "Pacemaker serial number {serial}", '{{"udiCarrier": "{udi}"}}', "Implanted lead {udi} left ventricle", "device serial {serial}", "Implant serial no. {serial}", "Device serial number: {serial}", "scanned {udi}")),
    ("name", (
        "Patient name: {first_last}", "Patient: {last_first}", "Patient Name {last_first}", '{{"resourceType": "Patient", "name": [{{"use": "official", "family": "Larsen", "given": ["Nora"]}}]}}', '{{"patient_name": "{first_last}"}}',
        "patientName: '{first_last}'", "patient_name={first_last}", "PATIENT NAME: {last_first}", "Name of patient: {first_last}", "patient's name is {first_last}", "Pt name: {last_first}", "Patient: {last_first} (F)",
        "patient_name,ssn\n{first_last},none")),
    ("address", (
        "Lives at {address}", "Address: {address}", '{{"address": "{address}"}}', "Mail records to {address}", "Home: {address}", "# shipped to {address}", "PO Box 211, Dayton, OH 45402", "Discharged home, {address}, with daughter.",
        "9,{address},ok")),
    ("zip", ("ZIP: {zip4}", "zip code {zip4}", '{{"postalCode": "{zip4}"}}', "Dayton, OH {zip4}", "postal_code={zip4}", "zip+4 {zip4}", "Mesa AZ {zip4}")),
    ("mrn name dob phone ssn address account", (
        "PID|1||{mrn}^^^HOSP^MR||{hl7_name}||{iso_birth:d}|F|||{town_line}||{phone}|||S||{account}|{ssn:d}",
        "MSH|^~\\&|ADT|H\rPID|||{mrn}||{hl7_name}||{iso_birth:d}|M|||{town_line}||{phone}|||M||{account}|{ssn}\rPV1|1|I")),
    ("mrn name dob", (
        "Patient: {last_first}   MRN: {mrn}   DOB: {birth}\nHPI: 54F with dyspnea on exertion.", "mrn,patient_name,dob\n{mrn},{first_last},{iso_birth}\n{mrn},{first_last},{iso_birth}",
        "     1\tmrn\tpatient_name\tdob\n     2\t{mrn}\t{first_last}\t{iso_birth}", '"MRN","Name","DOB"\n"{mrn}","{last_first}","{iso_birth}"', "| MRN | Name | DOB |\n| --- | --- | --- |\n| {mrn} | {first_last} | {iso_birth} |")),
)  # fmt: skip

# --- texts without --------------------------------------------------------------------------------


def hexes(r, size):
    return hashlib.sha256(str(r.random()).encode()).hexdigest()[:size]


FILLS: Dict[str, Callable] = {
    "h40": lambda r: hexes(r, 40), "h7": lambda r: hexes(r, 7), "h64": lambda r: hexes(r, 64), "uuid": lambda r: str(uuid.UUID(int=r.getrandbits(128))),
    "date": lambda r: f"20{r.randrange(10, 27)}-{r.randrange(1, 13):02}-{r.randrange(1, 29):02}", "time": lambda r: f"{r.randrange(24):02}:{r.randrange(60):02}:{r.randrange(60):02}",
    "ver": lambda r: f"{r.randrange(20)}.{r.randrange(400)}.{r.randrange(3000)}", "ip": lambda r: ".".join(str(r.randrange(1, 255)) for _ in range(4)),
    "n2": lambda r: number(r, 2), "n3": lambda r: number(r, 3), "n4": lambda r: number(r, 4), "n5": lambda r: number(r, 5), "n6": lambda r: number(r, 6), "n8": lambda r: number(r, 8), "n9": lambda r: number(r, 9),
    "n10": lambda r: number(r, 10), "n13": lambda r: "17" + number(r, 11), "n16": lambda r: number(r, 16), "n17": lambda r: number(r, 17), "n19": lambda r: "17" + number(r, 17), "n22": lambda r: "94" + number(r, 20),
    "b64": lambda r: "".join(r.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") for _ in range(88)), "up": lambda r: "".join(r.choice("ABCDEFGHJKLMNPRSTUVWXYZ0123456789") for _ in range(r.choice([8, 10, 12, 16, 20]))),
    "f": lambda r: f"{r.uniform(-180, 180):.6f}", "word": lambda r: r.choice("parse load render index token cache route fetch merge build".split()), "isbn": lambda r: f"978-{r.randrange(10)}-{number(r, 3)}-{number(r, 5)}-{r.randrange(10)}",
    "rule": lambda r: f"def {r.choice(['get', 'set'])}_{r.choice(['x', 'y'])}_{number(r, 3)}",
}  # fmt: skip

NEGATIVES: Tuple[str, ...] = (
    "commit {h40}\nAuthor: Ann Dev <ann.dev@corp.io>\nDate:   {date} {time}\n\n    {word}: mend", "{h7} {word}: take {n3} rows", "index {h7}..{h7} 100644", "sha256:{h64}", '"integrity": "sha512-{b64}"', "id={uuid}", "trace {uuid} span {h7}",
    "{date}T{time}.{n3}Z INFO served {n3} in {n4} ms from {ip}:{n5}", "[{date} {time},{n3}] {word} pid={n5} tid={n6}", "version {ver}, build {n8}", '"{word}": "^{ver}",', "{word}=={ver}", "pip install {word}=={ver}.post{n4}",
    "ISBN {isbn}", "ISBN-10 0-306-{n5}-{n3}", "tracking 1Z{n8}{n8}", "USPS {n22}", "lat {f}, lon {f}", "[[{n3}, {n2}, {n4}], [{n4}, {n3}, {n3}]]", "{n3} {n2} {n4}\n{n3} {n2} {n4}\n{n4} {n3} {n2}", "{n3} {n3} {n4}\n{n3} {n3} {n4}",
    "{n4} {n4} {n3} {n4}\n{n4} {n4} {n3} {n4}", "timestamp_ms={n13}", "ns: {n19}", "order {n10} shipped", "const MAX = {n9};", "seed = {n16}", "0x{h40}", "mac 00:1b:44:11:3a:b7 host {ip}", "connect to {ip}:{n4} failed", "::ffff:{ip}",
    "def {word}_{n3}(x: int) -> int:\n    return x * {n4} + {n9}", "assert {word}({n10}) == {n8}", "for (let i = 0; i < {n6}; i++) {{ a[{n3}] = {n9}; }}", "color: #{h7}; margin: {n3}px {n2}px;", "SELECT * FROM t WHERE id IN ({n8}, {n9}, {n10})",
    "ERROR {n5}: request {h7} took {n4}ms (limit {n3})", "range {n3}-{n3}, pages {n3}-{n4}", "RFC {n4}, section {n2}.{n2}", "CVE-20{n2}-{n5}", "bug {n6}, see https://bugs.corp.io/{n6}", "https://x.io/a/{n3}-{n2}-{n4}/b?c={n10}",
    "AWS_ACCESS_KEY_ID=AKIA{up}", "key {up}-{up}", "PART NO {up}", "model {up}, serial {up}", "eyJ{b64}", "data:image/png;base64,{b64}==", "git@github.com:org/{word}.git", "noreply@anthropic.com", "user@example.com, test@test.example.org",
    "npm WARN deprecated {word}@{ver}", "{word}@{ver}", "@types/node@{ver}", "class DOBERMAN: speed = {n4}", "dob: date | None = None", "mrn: str  # medical record number", "patient_id = Column(Integer, primary_key=True)",
    "ssn VARCHAR(11) NOT NULL", "phone: Optional[str] = None", "re.compile(r'\\d{{3}}-\\d{{2}}-\\d{{4}}')  # ssn", "CREATE TABLE patients (mrn TEXT, dob DATE, ssn TEXT);", "test_patient_name_is_required took {n3} ms", "patient_name = request.form['name']",
    "Patient: Please call the front desk", "The patient id is validated by validate_id()", "call stack at {n10}", "cell {n3}, row {n4}", "born free, line {n4}", "the policy number field is required", "account number must have {n2} digits", "license: MIT, copyright {n4}",
    "Licensed under Apache 2.0 ({n4})", "zip -r out-{n5}.zip src", "zipcode_regex = '^[0-9]{{5}}(-[0-9]{{4}})?$'", "unzip {ver}.zip", "birthday problem with {n3} people: {f}", "visa_requirements.md updated {date}", "cardinality {n10}", "graphics card {n4} Ti",
    "fax machine driver {ver}", "telemetry {n10} events", "device serial port /dev/ttyUSB{n2}", "udiff -{n3},{n2} +{n4},{n2}", "@@ -{n3},{n2} +{n3},{n2} @@", "dea{h7}", "npi = n_per_item * {n4}", "epoch {n10}, loss {f}", "1-800-{n3}-{n4} toll free",
    "(800) 555-0199 is the help desk", "{n3}-{n4}", "{n2}-{n3}-{n4}-{n2}", "{n4}-{n4}-{n4}", "v{n3}.{n3}.{n4}", "{n5}-{n4}", "Copyright (c) 1998-{n4}", "123-45-6789", "phone like 555-0100", "MM/DD/YYYY e.g. {date}", "due {date}, released {date}",
    "# Environment\n - Platform: linux\n - OS Version: Linux {ver}\n - Today's date: {date}\nYou are powered by the model claude-opus-4-{date}", "You are an interactive CLI tool that helps users with software engineering tasks. IMPORTANT: Assist with authorized testing.",
    "     {n2}\timport os\n     {n2}\timport re\n     {n2}\tMAX = {n6}", "drwxr-xr-x 2 root root {n4} Nov {n2} {time} {word}", "-rw-r--r-- 1 u g {n8} {date} {time} {word}-{ver}.tgz", "{n8}  {n10}  {n6}  {word}.o", "Ran {n3} tests in {n2}.{n3}s", "{word}.py:{n3}:{n2}: E501 line too long ({n3} > 100)",
    '"resolved": "https://registry.npmjs.org/{word}/-/{word}-{ver}.tgz"', "OID 1.2.840.{n6}.{n5}.{n3}", "LOINC {n5}-{n2}", "ICD-10 E11.{n2}, CPT {n5}, SNOMED {n9}", "NDC {n5}-{n4}-{n2}", "BP 120/80, HR {n2}, temp 98.6, weight {n3}.{n2}", "WBC {n2}.{n2} PLT {n3} Na {n3}",
    "GET /api/patients/{uuid} 200 {n4}", "patient/{h7}/labs?from={date}", "Encounter {date}, follow-up {date}", "HGVS NM_{n6}.{n2}:c.{n4}A>G", "rs{n8} chr7:{n9}-{n9}", "CAS {n5}-{n2}-3", "DOI 10.{n4}/s{n5}-{n3}-{n5}-x", "PMID {n8}", "arXiv:{n4}.{n5}", "TCK {n17} ticks",
    "{n16}", "{n9}", "a={n3}.{n3}.{n4};b={n2}", "x,y,z\n{f},{f},{f}\n{n3},{n2},{n4}", "id,mean,dob_missing\n{n3},{f},0", "mrn_count,ssn_count\n{n3},{n2}",
)  # fmt: skip


class Filler(dict):
    """Makes a value where a template asks for one."""

    def __init__(self, r: random.Random) -> None:
        super().__init__()
        self.r = r

    def __missing__(self, name: str) -> Made:
        return Made((VALUES.get(name) or FILLS[name])(self.r))


class Made(str):
    def __format__(self, spec: str) -> str:
        return "".join(c for c in self if c.isdigit()) if spec == "d" else str(self)


AROUND = ("{}", "{}\n", "Seen in clinic today. {}\nPlan: continue metformin.", "log line 1\n{}\nlog line 3", "    # {}")
COPIES_POSITIVE, COPIES_NEGATIVE = 4, 6


def made(template: str, seed: str, around: bool) -> str:
    r = random.Random(seed)
    text = template.format_map(Filler(r))
    return (r.choice(AROUND) if around and "\n" not in text and "PID|" not in text else "{}").replace("{}", text)


def samples(held_out: bool) -> List[Sample]:
    """Every second template of each group is held out."""
    chosen: List[Sample] = []
    for categories, templates in POSITIVES:
        for template in templates[int(held_out)::2]:
            seeds = (f"{template}{copy}" for copy in range(COPIES_POSITIVE))
            chosen += [Sample(made(template, seed, True), frozenset(categories.split())) for seed in seeds]
    for template in NEGATIVES[int(held_out)::2]:
        seeds = (f"{template}{copy}" for copy in range(COPIES_NEGATIVE))
        chosen += [Sample(made(template, seed, False), frozenset()) for seed in seeds]
    return chosen
