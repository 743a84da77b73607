"""Sending the mails of notices: what they say, and what becomes of one that the server does not take.

Nothing here runs inside a transaction: a server may take its time. A mail is claimed by moving its `due_at` ahead, so
one whose sender dies is sent again by whoever looks after that; it bears the same Message-ID and the same text, by
which its readers know it. See recovery.notices for the states.
"""

import logging
import smtplib
from datetime import datetime, timedelta
from email.utils import format_datetime, parseaddr
from itertools import chain, zip_longest

from django.conf import settings
from django.core import mail as post
from django.core.mail import EmailMessage
from django.db.models import Exists, OuterRef, Q

from k1node.lib import ids, sql
from k1node.lib.admin_display import exact
from recovery import notice_rules as rules
from recovery.models import NoticeMail, NoticeRule
from recovery.notice_rules import Kind
from recovery.notices import SAMPLES, Sample

logger = logging.getLogger(__name__)

CLAIM = timedelta(minutes=2)  # a try takes no longer, at the worst the mail arrives twice
MOST_ERROR = 500
MOST_TRIES = 6  # for an address that is refused for now while others have the mail: some 15 minutes


def is_set_up() -> bool:
    """Say whether this node knows a mail server; without one, mails wait."""
    return bool(settings.EMAIL_HOST)


# --- what a mail says -------------------------------------------------------------------------------------------


def subject(mail: NoticeMail) -> str:
    return f"K1.Node: {rules.total_words(mail.counts)}"


def text(mail: NoticeMail) -> str:
    total = sum(mail.counts.values())
    shown = chosen(mail.samples)
    counts = "\n".join(f"{count:>8,}  {Kind(kind).label}" for kind, count in rules.in_order(mail.counts))
    parts = [
        f"From {exact(mail.began_at)} to {exact(mail.ended_at)}:",
        counts,
        f"{len(shown)} of these {total:,}:" if len(shown) < total else "",
        "\n\n".join(_sample(each) for each in shown),
        f"-- \nRule: {mail.rule_name}{_link(f'recovery/noticerule/{mail.rule_id}')}",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def chosen(samples: list[Sample]) -> list[Sample]:
    """Return the samples that a mail shows: of each kind as many as there is room for, in the order of their time."""
    by_kind = [[each for each in samples if each["kind"] == kind] for kind in Kind]
    in_turn = [each for each in chain.from_iterable(zip_longest(*by_kind)) if each is not None]
    return sorted(in_turn[:SAMPLES], key=lambda each: each["at"])


def _sample(sample: Sample) -> str:
    lines = [f"{exact(datetime.fromisoformat(sample['at']))}  {Kind(sample['kind']).label}: {sample['subject']}"]
    if sample["schedule"]:
        lines.append(f"  schedule {sample['schedule']}")
    if sample["text"]:
        lines.append(f"  {sample['text']}")
    if sample["task"] and settings.K1NODE_URL:
        lines.append(_link(f"scheduling/task/{sample['task']}"))
    return "\n".join(lines)


def _link(page: str) -> str:
    # Not by reverse(): it would load every view of the web into the process that sends.
    return f"\n  {settings.K1NODE_URL}/admin/{page}/change/" if settings.K1NODE_URL else ""


def message(mail: NoticeMail, address: str) -> EmailMessage:
    """Return the message to one of its readers: nobody sees the others, and each try has the same head and text."""
    sealed_at = mail.sealed_at or mail.ended_at
    headers = {
        "Message-ID": mail.message_id,
        "Date": format_datetime(sealed_at),
        "Auto-Submitted": "auto-generated",  # no holiday answers, please
    }
    return EmailMessage(subject(mail), text(mail), to=[address], headers=headers)


# --- sending ----------------------------------------------------------------------------------------------------


def send_next(*, now: datetime) -> bool:
    """Send the mail that is due for longest; False if there was none or it did not go: better look again later."""
    if not is_set_up():
        return False
    on_its_way = NoticeMail.objects.filter(rule=OuterRef("rule"), sealed_at__isnull=False, sent_at=None)
    ready = Q(sealed_at__isnull=False) | ~Exists(on_its_way)
    mail = (
        NoticeMail.objects.filter(ready, sent_at=None, due_at__lte=now, rule__enabled=True).order_by("due_at").first()
    )
    claimed = _claim(mail, now=now) if mail is not None else None
    return claimed is not None and _send(claimed, now=now)


def _claim(mail: NoticeMail, *, now: datetime) -> NoticeMail | None:
    """Take the mail for this try, and seal it before its first one; None if another node was faster."""
    taken = NoticeMail.objects.filter(pk=mail.pk, sent_at=None, tries=mail.tries).update(
        due_at=now + CLAIM,
        tries=mail.tries + 1,
        sealed_at=mail.sealed_at or now,
        message_id=mail.message_id or f"<notice.{mail.pk}.{ids.random_part()}@{_domain()}>",
    )
    # Read again: more may have been collected until it was sealed.
    return NoticeMail.objects.select_related("rule").filter(pk=mail.pk).first() if taken else None


def _domain() -> str:
    return parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2]


def _send(mail: NoticeMail, *, now: datetime) -> bool:
    rule = mail.rule
    if rule is None:
        return False
    reached, refused, trouble = list(mail.reached), [], ""
    again = False
    try:
        with post.get_connection() as server:
            for address in [each for each in rule.addresses if each not in mail.reached]:
                try:
                    server.send_messages([message(mail, address)])
                except (smtplib.SMTPRecipientsRefused, smtplib.SMTPDataError) as error:
                    refused.append(described(error))
                    again = again or code_of(error) < 500
                else:
                    reached.append(address)
    except Exception as error:
        # Whatever a server, a network or a backend comes up with: the mail is kept and tried again.
        trouble = described(error)
    # One full mailbox must not keep the next mail from the others.
    if trouble or not reached or (again and mail.tries < MOST_TRIES):
        _failed(mail, reached, trouble or "; ".join(refused), now=now)
        return False
    _gone(mail, reached, "; ".join(refused), now=now)
    return True


def code_of(error: smtplib.SMTPRecipientsRefused | smtplib.SMTPDataError) -> int:
    if isinstance(error, smtplib.SMTPDataError):
        return int(error.smtp_code)
    return next((code for code, _ in error.recipients.values()), 0)


def _failed(mail: NoticeMail, reached: list[str], error: str, *, now: datetime) -> None:
    logger.warning("Notice not sent", extra={"rule": mail.rule_name, "tries": mail.tries, "error": error})
    due_at = now + rules.wait_after(mail.tries)

    def work() -> None:
        NoticeRule.objects.filter(mails=mail).update(last_error=error)
        # Unless somebody else has tried in the meantime, because this try took too long.
        NoticeMail.objects.filter(pk=mail.pk, sent_at=None, tries=mail.tries).update(due_at=due_at, reached=reached)

    sql.in_transaction(work)


def _gone(mail: NoticeMail, reached: list[str], error: str, *, now: datetime) -> None:
    """Note that a mail has gone; those whom the server refuses for good are named on the rule."""
    logger.info("Notice sent", extra={"rule": mail.rule_name, "message_id": mail.message_id, "refused": error})

    def work() -> None:
        rule = NoticeRule.objects.select_for_update().filter(pk=mail.rule.pk).first() if mail.rule else None
        NoticeMail.objects.filter(pk=mail.pk, sent_at=None).update(sent_at=now, reached=reached)
        if rule is None:
            return
        rule.last_sent_at, rule.last_error = now, error
        rule.save(update_fields=["last_sent_at", "last_error"])
        # What has come while this one waited or failed.
        window_ends = now + timedelta(seconds=rule.window_seconds)
        NoticeMail.objects.filter(rule=rule, sealed_at=None, due_at__lt=window_ends).update(due_at=window_ends)

    sql.in_transaction(work)
    NoticeMail.objects.filter(sent_at__lt=now - timedelta(days=settings.K1NODE_KEEP_EVENT_DAYS)).delete()


def send_test(rule: NoticeRule) -> str:
    """Send a test mail to all addresses of a rule at once; return what went wrong, empty if nothing did."""
    if not is_set_up():
        return "EMAIL_HOST is not set"
    words = f"This is a test of the rule '{rule.name}' about notices of K1.Node."
    try:
        with post.get_connection() as server:
            for address in rule.addresses:
                server.send_messages([EmailMessage("K1.Node: a test", words, to=[address])])
    except Exception as error:  # as in _send()
        return described(error)
    return ""


def described(error: BaseException) -> str:
    """Return in one line what a mail server or the way to it said."""
    match error:
        case smtplib.SMTPRecipientsRefused():
            said = "; ".join(
                f"{address}: {code} {_decoded(answer)}" for address, (code, answer) in error.recipients.items()
            )
        case smtplib.SMTPResponseException():
            said = f"{error.smtp_code} {_decoded(error.smtp_error)}"
        case _:
            said = f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:MOST_ERROR]


def _decoded(answer: bytes | str) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer
