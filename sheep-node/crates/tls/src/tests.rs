use crate::authority::{Authority, time_of};
use crate::*;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_stream::StreamExt;

const DAY: Duration = Duration::from_secs(86_400);

fn authority() -> Authority {
    Authority::make("test", 10 * DAY).unwrap()
}

fn of_past(authority: &Authority, role: Role) -> Pem {
    let now = SystemTime::now();
    authority.issue_for(role, now - 2 * DAY..now - DAY).unwrap()
}

fn problem<T: std::fmt::Debug>(result: Result<T, TlsError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_is_issued_is_good_for_its_role_and_its_time() {
    let ca = authority();
    let now = SystemTime::now();
    for role in [Role::Node, Role::Client] {
        let pem = ca.issue(role, DAY).unwrap();
        assert!(pem.check(role, now).is_ok() && Identity::new(&pem, role).is_ok());
        let time = time_of(&pem.certificate).unwrap();
        assert!(time.contains(&now) && !time.contains(&(now + DAY + DAY / 24)));
        assert!(problem(pem.check(role, now + 2 * DAY)).ends_with("it has expired"));
        assert!(problem(pem.check(role, now - 2 * DAY)).contains("not valid yet"));
    }
    let long = ca.issue(Role::Node, 1_000 * DAY).unwrap();
    assert_eq!(time_of(&long.certificate).unwrap().end, ca.ends(), "it does not outlive its CA");
    let client = ca.issue(Role::Client, DAY).unwrap();
    assert!(problem(Identity::new(&client, Role::Node)).contains("may not be used for this side"));
    let node = ca.issue(Role::Node, DAY).unwrap();
    assert!(Identity::new(&node, Role::Client).is_ok(), "a node may use the API of others");
    assert!(problem(node.check(Role::Client, now)).contains("another role"));
}

#[test]
fn what_does_not_fit_together_is_refused_with_a_sentence() {
    let (ca, other) = (authority(), authority());
    let good = ca.issue(Role::Node, DAY).unwrap();
    let second = other.issue(Role::Node, DAY).unwrap();
    let wrong_ca = Pem { ca: second.ca.clone(), ..good.clone() };
    assert!(problem(Identity::new(&wrong_ca, Role::Node)).contains("is of another CA"));
    let wrong_key = Pem { key: second.key.clone(), ..good.clone() };
    assert!(problem(Identity::new(&wrong_key, Role::Node)).contains("the key is that of another one"));
    assert!(problem(Identity::new(&of_past(&ca, Role::Node), Role::Node)).contains("has expired"));
    let both = Pem { ca: [second.ca.clone(), good.ca.clone()].concat(), ..good.clone() };
    assert!(Identity::new(&both, Role::Node).is_ok(), "several CAs may be believed");
    for part in 0..3 {
        for bytes in
            [&b""[..], b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            let mut bad = good.clone();
            *[&mut bad.ca, &mut bad.certificate, &mut bad.key][part] = bytes.to_vec();
            Identity::new(&bad, Role::Node).unwrap_err();
        }
    }
}

#[test]
fn an_authority_comes_back_from_its_files_and_from_no_others() {
    let (ca, other) = (authority(), authority());
    let again = Authority::read(ca.certificate().as_bytes(), ca.key().as_bytes()).unwrap();
    let pem = again.issue(Role::Client, DAY).unwrap();
    assert!(pem.check(Role::Client, SystemTime::now()).is_ok() && pem.ca == ca.certificate().as_bytes());
    let crossed = Authority::read(ca.certificate().as_bytes(), other.key().as_bytes());
    assert!(problem(crossed).contains("that of another one"));
    let leaf = Authority::read(&pem.certificate, &pem.key);
    assert!(problem(leaf).contains("and is none"));
    assert!(problem(Authority::read(b"x", ca.key().as_bytes())).contains("not in PEM form"));
    assert!(problem(Authority::read(ca.certificate().as_bytes(), b"x")).contains("not in PEM form"));
}

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sheep-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> Files {
        let at = |name: &str| self.0.join(name);
        Files { ca: at("ca.crt"), certificate: at("tls.crt"), key: at("tls.key") }
    }

    fn write(&self, pem: &Pem) {
        let files = self.files();
        std::fs::write(files.ca, &pem.ca).unwrap();
        std::fs::write(files.certificate, &pem.certificate).unwrap();
        std::fs::write(files.key, &pem.key).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn new_files_are_used_once_they_fit_together_and_the_old_ones_until_then() {
    let ca = authority();
    let directory = Directory::new("renewal");
    assert!(problem(Certificates::open(directory.files(), Role::Node)).starts_with("cannot read"));
    directory.write(&ca.issue(Role::Node, DAY).unwrap());
    let certificates = Certificates::open(directory.files(), Role::Node).unwrap();
    let first = certificates.current();
    let later = || {
        std::thread::sleep(Duration::from_millis(1_050));
        certificates.current()
    };
    let renewed = ca.issue(Role::Node, DAY).unwrap();
    std::fs::write(directory.files().certificate, &renewed.certificate).unwrap();
    assert!(Arc::ptr_eq(&first, &later()), "half of it is written");
    std::fs::remove_file(directory.files().key).unwrap();
    assert!(Arc::ptr_eq(&first, &later()), "nothing is there");
    directory.write(&renewed);
    let second = later();
    assert!(!Arc::ptr_eq(&first, &second));
    directory.write(&of_past(&ca, Role::Node));
    assert!(Arc::ptr_eq(&second, &later()), "what has expired is not used");
}

#[test]
fn three_files_belong_together() {
    let path = PathBuf::from("x");
    let some = Some(path.as_path());
    assert!(Files::all_or_none(some, some, some, "a, b, c").unwrap().is_some());
    assert!(Files::all_or_none(None, None, None, "a, b, c").unwrap().is_none());
    let problem = problem(Files::all_or_none(some, None, some, "a, b, c"));
    assert!(problem.contains("all three of a, b, c"), "{problem}");
}

/// What becomes of a call with these certificates to a server with those; both sides' words.
async fn call(server: &Pem, client: Option<&Pem>) -> Result<(), String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let certificates = Arc::new(Certificates::fixed(server.clone(), Role::Node).unwrap());
    let mut incoming = incoming(listener, certificates);
    tokio::spawn(async move {
        while let Some(Ok(mut stream)) = incoming.next().await {
            let _ = stream.write_all(b"hello").await;
        }
    });
    let client = client.map(|pem| Arc::new(Certificates::fixed(pem.clone(), Role::Client).unwrap()));
    let uri = format!("http://{address}").parse().unwrap();
    let mut stream = stream::dial(uri, client).await.map_err(|error| error.to_string())?;
    let stream = stream.inner_mut();
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn both_sides_of_a_control_connection_show_a_certificate_of_one_ca() {
    let (ca, other) = (authority(), authority());
    let node = ca.issue(Role::Node, DAY).unwrap();
    for client in [Role::Client, Role::Node] {
        assert_eq!(call(&node, Some(&ca.issue(client, DAY).unwrap())).await, Ok(()));
    }
    let foreign = call(&node, Some(&other.issue(Role::Client, DAY).unwrap())).await.unwrap_err();
    assert_eq!(foreign, "the node shows a certificate that is of another CA");
    // It believes in the node's CA, and shows what that has not made.
    let mut stranger = other.issue(Role::Client, DAY).unwrap();
    stranger.ca = [ca.certificate(), other.certificate()].concat().into_bytes();
    let refused = call(&node, Some(&stranger)).await.unwrap_err();
    assert_eq!(refused, "the node refuses our certificate: it is of another CA");
    let none = call(&node, None).await.unwrap_err();
    assert!(none.contains("speaks TLS only") && none.contains("--tls-ca"), "{none}");
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    });
    let pem = authority().issue(Role::Client, DAY).unwrap();
    let certificates = Arc::new(Certificates::fixed(pem, Role::Client).unwrap());
    let problem = stream::dial(uri, Some(certificates)).await.err().unwrap().to_string();
    assert!(problem.contains("does not speak TLS"), "{problem}");
}
