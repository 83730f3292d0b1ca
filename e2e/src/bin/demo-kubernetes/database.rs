//! The databases of the demonstration, and the client that pays all the time.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sheep_e2e::kubernetes::{Kubernetes, POSTGRESQL};

/// Payments that are there before the client begins.
pub(crate) const FILLED: u64 = 100_000;

/// Payment N is made once, however often somebody asks for it: a client that got no answer may ask again. It changes two tables in one
/// transaction, and everything in it follows from N; so a database that lost one, or half of one, cannot hide it.
const SCHEMA: &str = "
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE payment (id bigint PRIMARY KEY, account int NOT NULL, amount bigint NOT NULL, sum text NOT NULL);
CREATE FUNCTION whose(n bigint) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT (n % 1000)::int';
CREATE FUNCTION worth(n bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT n * 7919 % 2000 - 1000';
CREATE FUNCTION sum_of(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
    'SELECT md5(n || '':'' || whose(n) || '':'' || worth(n))';
CREATE FUNCTION pay(n bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO payment VALUES (n, whose(n), worth(n), sum_of(n)) ON CONFLICT DO NOTHING;
    IF FOUND THEN UPDATE account SET balance = balance + worth(n) WHERE id = whose(n); END IF;
END $$;
INSERT INTO payment SELECT n, whose(n), worth(n), sum_of(n) FROM generate_series(1, FILLED) n;
INSERT INTO account SELECT account, sum(amount) FROM payment GROUP BY account;
";

/// Payments, the number of the last one, payments whose checksum is wrong, and accounts whose balance is not the sum of their payments.
const CHECK: &str = "
SELECT count(*), max(id), count(*) FILTER (WHERE sum <> md5(id || ':' || account || ':' || amount)),
    (SELECT count(*) FROM account, (SELECT account, sum(amount) FROM payment GROUP BY account) AS paid
        WHERE account.id = paid.account AND balance <> paid.sum)
FROM payment;
";

/// What the client does: one payment after the other, each in a connection of its own, again until it is answered.
const CLIENT: &str = r#"
n=$1
while :; do
    if timeout 2 psql --quiet --no-align --tuples-only --command "SELECT pay($n)" > /dev/null 2> /tmp/error; then
        echo "$n $(date +%s.%N)" >> /tmp/answered
        n=$((n + 1))
    else
        sleep 0.1
    fi
done
"#;

/// A database: the first pod of the StatefulSet `name`.
pub(crate) struct Database<'a> {
    pub(crate) kubernetes: &'a Kubernetes,
    pub(crate) name: &'static str,
}

/// A payment that was answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answered {
    pub(crate) number: u64,
    /// Since 1970.
    pub(crate) at: Duration,
}

/// What a database says of its contents, when it has found nothing wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checked {
    pub(crate) payments: u64,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} payments, all there and right", self.payments)
    }
}

/// The objects of a database; one that is made of a snapshot if there is a name of one.
pub(crate) fn manifest(name: &str, [user, group]: &[String; 2], snapshot: Option<&str>) -> String {
    let source = snapshot.map_or_else(String::new, |snapshot| {
        format!("dataSource: {{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {snapshot}}}")
    });
    let text = include_str!("../../../kubernetes/postgresql.yaml");
    let text = text.replace("NAME", name).replace("IMAGE", POSTGRESQL).replace("SOURCE", &source);
    text.replace("UID", user).replace("GID", group)
}

impl Database<'_> {
    pub(crate) fn pod(&self) -> String {
        format!("{}-0", self.name)
    }

    /// Runs SQL in it, and returns what it prints, with `|` between the columns.
    pub(crate) fn sql(&self, text: &str) -> Result<String> {
        let words = ["exec", &self.pod(), "--", "psql", "--quiet", "--no-align", "--tuples-only"];
        let options = ["--set=ON_ERROR_STOP=1", "--command", text];
        self.kubernetes.kubectl(words.iter().chain(&options))
    }

    /// Makes the tables, and as many payments as there are to begin with.
    pub(crate) fn fill(&self) -> Result<()> {
        self.sql(&SCHEMA.replace("FILLED", &FILLED.to_string())).map(drop)
    }

    /// Looks at every row: nothing is missing between the first payment and the last, each is what it was, and all balances follow
    /// from them.
    pub(crate) fn check(&self) -> Result<Checked> {
        let found = self.sql(CHECK)?;
        let numbers: Vec<u64> = found.trim().split('|').filter_map(|number| number.parse().ok()).collect();
        let [payments, last, wrong, unbalanced] = numbers[..] else {
            bail!("{} counts {found:?}", self.name)
        };
        ensure!(
            payments == last && wrong == 0 && unbalanced == 0,
            "{} has {payments} payments up to number {last}, {wrong} of them damaged, and {unbalanced} wrong balances",
            self.name
        );
        Ok(Checked { payments })
    }

    /// How it came up the last time, in its own words.
    pub(crate) fn recovery(&self) -> Result<Vec<String>> {
        let said = self.kubernetes.kubectl(["logs", &self.pod()])?;
        let telling = ["not properly shut down", "redo ", "ready to accept"];
        let lines = said.lines().filter(|line| telling.iter().any(|words| line.contains(words)));
        Ok(lines.filter_map(|line| line.split_once("LOG:  ")).map(|(_, text)| text.to_owned()).collect())
    }
}

/// A pod on a node of its own that pays all the time.
pub(crate) fn client(database: &str, node: &str) -> String {
    let first = (FILLED + 1).to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "client"},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "client",
                "image": POSTGRESQL,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", CLIENT, "sh", first],
                "env": [
                    {"name": "PGHOST", "value": database},
                    {"name": "PGUSER", "value": "postgres"},
                    {"name": "PGCONNECT_TIMEOUT", "value": "2"},
                ],
            }],
        },
    })
    .to_string()
}

/// All payments that the client got an answer for.
pub(crate) fn answered(kubernetes: &Kubernetes) -> Result<Vec<Answered>> {
    let said = kubernetes.exec("client", "cat /tmp/answered 2> /dev/null || true")?;
    let parse = |line: &str| {
        let (number, at) = line.split_once(' ')?;
        Some(Answered {
            number: number.parse().ok()?,
            at: Duration::try_from_secs_f64(at.parse().ok()?).ok()?,
        })
    };
    Ok(said.lines().filter_map(parse).collect())
}

/// Number of the last payment that the client got an answer for.
pub(crate) fn last_answered(kubernetes: &Kubernetes) -> Result<u64> {
    Ok(answered(kubernetes)?.last().context("the client has not paid yet")?.number)
}

/// What the client said of its last attempt.
pub(crate) fn client_error(kubernetes: &Kubernetes) -> String {
    let said = kubernetes.exec("client", "cat /tmp/error").unwrap_or_default();
    format!("the client does not get on: {}", said.trim())
}

/// The two payments between which the client waited longest after some time, if it has come to the second.
pub(crate) fn longest_pause(all: &[Answered], after: SystemTime) -> Option<(Answered, Answered)> {
    let after = after.duration_since(UNIX_EPOCH).ok()?;
    let pairs = all.iter().zip(all.iter().skip(1)).filter(|(_, next)| next.at > after);
    pairs.map(|(one, next)| (*one, *next)).max_by_key(|(one, next)| next.at.saturating_sub(one.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_is_looked_for_after_the_kill() {
        let at = |number: u64, at: u64| Answered { number, at: Duration::from_secs(at) };
        let all = [at(1, 1), at(2, 50), at(3, 51), at(4, 71), at(5, 72)];
        let killed = UNIX_EPOCH + Duration::from_secs(52);
        assert_eq!(longest_pause(&all, killed), Some((at(3, 51), at(4, 71))));
        assert_eq!(longest_pause(&all[..3], killed), None);
    }

    #[test]
    fn a_copy_names_its_snapshot_and_nothing_else_is_replaced() {
        let ids = ["101".to_owned(), "103".to_owned()];
        let text = manifest("bank", &ids, Some("noon"));
        assert!(text.contains("runAsUser: 101") && text.contains("fsGroup: 103"));
        assert!(text.contains("kind: VolumeSnapshot, name: noon"));
        assert!(!manifest("bank", &ids, None).contains("dataSource"));
    }
}
