//! `make demo-kubernetes`: a PostgreSQL on a real Kubernetes keeps its data in Sheepdog. While a client pays, a snapshot is taken and a
//! second PostgreSQL starts from it; then the node of the first one loses its power.

mod database;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use database::{Database, FILLED, answered, client, client_error, last_answered, longest_pause, manifest};
use sheep_e2e::kubernetes::{Kubernetes, postgresql, product};
use sheep_e2e::page::{Page, seconds};
use sheep_e2e::{LeakCheck, wait_until};

/// How long what surely comes may take; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(300);
const EVERY: Duration = Duration::from_millis(200);
/// Payments that are made in the copy alone.
const OWN: u64 = 1_000;

struct Demo {
    page: Page,
    kubernetes: Kubernetes,
    /// Of PostgreSQL in its image.
    ids: [String; 2],
}

fn main() -> ExitCode {
    match demonstrate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate() -> Result<()> {
    let keep = std::env::var("KEEP").is_ok_and(|value| !value.is_empty() && value != "0");
    let check = LeakCheck::start();
    let mut page = Page::new();
    page.title("Sheepdog for Kubernetes: a database that outlives its node");
    page.step("A Kubernetes of three nodes starts on this machine");
    page.say("without Docker and virtual machines; its programs and images are made once, and kept");
    let (archive, ids) = postgresql().context("making the image of PostgreSQL")?;
    let start = Instant::now();
    let kubernetes = Kubernetes::start_with(3, &[archive])?;
    page.fact("three nodes ready", seconds(start.elapsed()));
    let mut demo = Demo { page, kubernetes, ids };
    let result = demo.play();
    if result.is_err() {
        demo.kubernetes.keep_logs()?;
    } else {
        closing_page(&demo.page);
        if keep {
            demo.wait_for_enter()?;
        }
    }
    drop(demo);
    result.and_then(|()| check.finish())
}

impl Demo {
    fn play(&mut self) -> Result<()> {
        self.install()?;
        self.start_database()?;
        let (before, after) = self.take_snapshot()?;
        self.start_copy(before, after)?;
        self.both_go_on()?;
        self.lose_node()
    }

    fn bank(&self) -> Database<'_> {
        Database { kubernetes: &self.kubernetes, name: "bank" }
    }

    fn copy(&self) -> Database<'_> {
        Database { kubernetes: &self.kubernetes, name: "copy" }
    }

    fn install(&mut self) -> Result<()> {
        self.page.step("One command installs Sheepdog");
        self.page.command("helm install sheepdog charts/sheepdog --namespace sheepdog --create-namespace");
        let start = Instant::now();
        self.kubernetes.add_snapshots()?;
        product::install(&self.kubernetes, &[])?;
        self.page.fact("installed, on all nodes", seconds(start.elapsed()));
        self.show(&["get", "sheepdogcluster", "--namespace", product::NAMESPACE])?;
        self.show(&["get", "storageclass"])
    }

    fn start_database(&mut self) -> Result<()> {
        self.page.step("PostgreSQL starts, on a volume of three copies");
        self.page.command("kubectl apply -f e2e/kubernetes/postgresql.yaml");
        let start = Instant::now();
        self.start("bank", None)?;
        self.page.fact("claim, volume, file system, database", seconds(start.elapsed()));
        self.show(&["get", "pvc"])?;
        self.page.say(&self.kubernetes.exec("bank-0", "id; df -h /var/lib/postgresql")?);
        let start = Instant::now();
        self.bank().fill()?;
        self.page.fact("100,000 payments of 1,000 accounts", seconds(start.elapsed()));

        let bank = product::node_of(&self.kubernetes, &["bank-0"])?;
        let nodes = self.kubernetes.nodes();
        let other = nodes.iter().find(|node| **node != bank).context("a second node")?;
        self.kubernetes.apply(&client("bank", other))?;
        product::wait_ready(&self.kubernetes, "client")?;
        self.wait_paid(FILLED + 20)?;
        self.page.say(&format!(
            "the database is on node {bank}; a client on node {other} pays, and pays, and pays"
        ));
        Ok(())
    }

    fn start(&self, name: &'static str, snapshot: Option<&str>) -> Result<()> {
        self.kubernetes.apply(&manifest(name, &self.ids, snapshot))?;
        let set = format!("statefulset/{name}");
        self.kubernetes.kubectl(["rollout", "status", &set, product::PATIENCE]).map(drop)
    }

    /// Waits until the client has got an answer for so many payments.
    fn wait_paid(&self, number: u64) -> Result<()> {
        wait_until(&format!("payment {number}"), PATIENCE, EVERY, || {
            Ok(last_answered(&self.kubernetes).is_ok_and(|last| last >= number))
        })
        .with_context(|| client_error(&self.kubernetes))
        .map(drop)
    }

    /// Returns the payments that had been answered before it, and after it.
    fn take_snapshot(&mut self) -> Result<(u64, u64)> {
        self.page.step("A snapshot, while the client pays");
        let before = last_answered(&self.kubernetes)?;
        let start = Instant::now();
        product::snapshot(&self.kubernetes, "noon", "data-bank-0")?;
        let took = start.elapsed();
        let after = last_answered(&self.kubernetes)?;
        self.show(&["get", "volumesnapshot"])?;
        self.page.fact("snapshot, ready to use", seconds(took));
        self.page.say(&format!("answered before it: payment {before}; when it was there: payment {after}"));
        Ok((before, after))
    }

    fn start_copy(&mut self, before: u64, after: u64) -> Result<()> {
        self.page.step("A second PostgreSQL starts from the snapshot, beside the first");
        let start = Instant::now();
        self.start("copy", Some("noon"))?;
        self.page.fact("restored, mounted, recovered, beside the first", seconds(start.elapsed()));
        for line in self.copy().recovery()? {
            self.page.say(&line);
        }
        let found = self.copy().check()?;
        // The last one of them may have been committed, and not yet answered.
        ensure!(
            (before..=after + 1).contains(&found.payments),
            "the copy has {} payments; {before} were answered before the snapshot, {after} after it",
            found.payments
        );
        self.page.good(&format!("in the copy: {found}; payment {before} is there"));
        Ok(())
    }

    fn both_go_on(&mut self) -> Result<()> {
        self.page.step("Each goes its own way");
        let common = self.copy().check()?.payments;
        self.wait_paid(common + 20)?;
        let last = common + OWN;
        self.copy().sql(&format!("SELECT pay(n) FROM generate_series({}, {last}) n", common + 1))?;
        let (bank, copy) = (self.bank().check()?, self.copy().check()?);
        ensure!(copy.payments == last, "the copy has {} payments, not {last}", copy.payments);
        self.page.good(&format!("in the copy:  {copy}, {OWN} of them its own"));
        self.page.good(&format!("in the first: {bank}, {} of them its own", bank.payments - common));
        self.copy().sql("DROP TABLE payment, account")?;
        self.page.say("in the copy somebody drops all tables; and in the first one:");
        let bank = self.bank().check()?;
        self.page.fact("tables dropped in the copy; in the first", bank.to_string());
        Ok(())
    }

    fn lose_node(&mut self) -> Result<()> {
        let place = product::node_of(&self.kubernetes, &["bank-0"])?;
        self.page.step(&format!("Node {place} loses its power, with the database on it"));
        let before = last_answered(&self.kubernetes)?;
        let (start, killed) = (Instant::now(), SystemTime::now());
        self.kubernetes.cut_power(product::number(&self.kubernetes, &place)?)?;
        self.page.command(&format!(
            "kill -9 of every process on {place}    # payment {before} was the last seen before"
        ));
        let at = |start: Instant| format!("{:5.1} s", start.elapsed().as_secs_f64());
        self.milestone("Kubernetes misses the node", || {
            let node = self.kubernetes.get(&["node", &place])?;
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            Ok(conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] != "True"))
        })?;
        self.page.say(&format!("{}  Kubernetes notices that {place} is silent", at(start)));
        self.milestone("the database to be moved", || {
            let pod = self.kubernetes.get(&["pod", "bank-0"]).unwrap_or_default();
            Ok(pod["spec"]["nodeName"].as_str().is_some_and(|node| node != place))
        })?;
        let new = product::node_of(&self.kubernetes, &["bank-0"])?;
        self.page.say(&format!("{}  Sheepdog has taken the pod from it; it starts on {new}", at(start)));
        product::wait_ready(&self.kubernetes, "bank-0")?;
        self.page.say(&format!("{}  the volume is attached there, PostgreSQL has recovered", at(start)));
        let last = answered(&self.kubernetes)?.last().map_or(0, |last| last.number);
        self.wait_paid(last + 20)?;
        self.show_pause(killed, &place)?;
        for line in self.bank().recovery()? {
            self.page.say(&line);
        }
        let last = last_answered(&self.kubernetes)?;
        let bank = self.bank().check()?;
        ensure!(bank.payments >= last, "{} payments are there, and {last} were answered", bank.payments);
        self.page.fact("then, on another node", bank.to_string());
        self.show(&["get", "pods", "--output=wide"])
    }

    fn milestone(&self, what: &str, probe: impl FnMut() -> Result<bool>) -> Result<()> {
        wait_until(what, PATIENCE, EVERY, probe).map(drop)
    }

    /// What the client saw of it.
    fn show_pause(&mut self, killed: SystemTime, place: &str) -> Result<()> {
        let all = answered(&self.kubernetes)?;
        let (last, first) = longest_pause(&all, killed).context("the client has not paid since")?;
        ensure!(first.number == last.number + 1, "the client left out {} to {}", last.number, first.number);
        let pause = first.at.saturating_sub(last.at);
        self.page.say(&format!(
            "the client: payment {} is the last one answered by {place}, {} comes {} later",
            last.number,
            first.number,
            seconds(pause)
        ));
        self.page.fact("node of the database lost; pause of its client", seconds(pause));
        Ok(())
    }

    /// Shows what a command of `kubectl` prints.
    fn show(&self, words: &[&str]) -> Result<()> {
        let printed = self.kubernetes.kubectl(words)?;
        self.page.command(&format!("kubectl {}", words.join(" ")));
        self.page.say(printed.trim_end());
        Ok(())
    }

    fn wait_for_enter(&self) -> Result<()> {
        let kubectl = self.kubernetes.write_kubectl()?.display().to_string();
        self.page.title("It is still running. Try");
        for line in [
            "get pods --all-namespaces --output=wide",
            "describe sheepdogcluster --namespace sheepdog",
            "exec -it bank-0 -- psql --command 'SELECT count(*), max(id) FROM payment'",
            "exec client -- tail -f /tmp/answered",
        ] {
            self.page.command(&format!("{kubectl} {line}"));
        }
        self.page.say("Enter ends it all, and removes it.");
        std::io::stdin().read_line(&mut String::new()).context("waiting for Enter").map(drop)
    }
}

fn closing_page(page: &Page) {
    page.show_facts();
    page.say("A database ran on a volume that three nodes keep. A copy of it, made in full operation, recovered with every");
    page.say("payment that had been answered, and could be ruined without harm. Then the node was gone, for good and without");
    page.say("a word; nobody did anything, and the database went on elsewhere, with every payment that it had ever confirmed.");
    page.say(&format!("The whole of it took {}.", seconds(page.elapsed())));
    page.title("The same on your own cluster (docs/kubernetes.md)");
    page.command("helm install sheepdog charts/sheepdog --namespace sheepdog --create-namespace --set image.registry=YOURS");
    page.command("kubectl -n sheepdog get sheepdogcluster sheepdog --watch");
    page.say("and in the claims of your databases:  storageClassName: sheepdog");
}
