//! The local socket: bounds, bad input, one server a directory.

use std::future::Future;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::cli::CliError;
use crate::datadir::DataDir;

async fn echo(request: Value) -> Result<Vec<Value>, CliError> {
    match request.get("fail") {
        Some(_) => Err(CliError::refused("policy_denied", "no").hint("ask")),
        None => Ok(vec![request, json!(2)]),
    }
}

/// Runs `test` against a served socket in a data directory below `inner`.
async fn with_server<F: Future<Output = ()>>(inner: &str, test: impl FnOnce(PathBuf) -> F) {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::open(outer.path().join(inner)).unwrap();
    let server = LocalServer::bind(&directory, "relay").unwrap();
    assert_eq!(LocalServer::bind(&directory, "relay").unwrap_err().code, "already_running");
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    tasks.spawn(server.serve(echo, stop.clone()));
    let path = socket_path(directory.path(), "relay");
    test(path.clone()).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    assert!(!path.exists());
    let error = LocalClient::call(&path, json!(1)).await.unwrap_err();
    assert!(matches!(error, LocalError::NotRunning(_)), "{error:?}");
}

#[tokio::test]
async fn replies_and_errors_come_back_as_they_were() {
    with_server("d", |path| async move {
        let replies = LocalClient::call(&path, json!({"a": "x\ny"})).await.unwrap();
        assert_eq!(replies, [json!({"a": "x\ny"}), json!(2)]);
        let error = LocalClient::call(&path, json!({"fail": 1})).await.unwrap_err();
        let expected = CliError::refused("policy_denied", "no").hint("ask");
        assert_eq!(CliError::from(error), expected);
    })
    .await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn data_directories_with_long_paths_work() {
    with_server(&"long/".repeat(40), |path| async move {
        assert!(path.as_os_str().len() > 200);
        assert_eq!(LocalClient::call(&path, json!(1)).await.unwrap().len(), 2);
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn garbage_and_oversized_requests_get_an_error_and_harm_nobody() {
    with_server("d", |path| async move {
        let mut large = vec![b'1'; MAX_REQUEST_BYTES];
        large.push(b'\n');
        for bytes in [b"{not json\n".to_vec(), large] {
            let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
            // The server may stop reading before all is written.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains("local_bad_request"), "{answer}");
        }
        let request = Value::String("1".repeat(MAX_REQUEST_BYTES));
        let error = LocalClient::call(&path, request).await.unwrap_err();
        assert!(matches!(error, LocalError::TooLarge));
        assert_eq!(LocalClient::call(&path, json!(1)).await.unwrap().len(), 2);
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_socket_of_a_dead_program_is_replaced() {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::open(outer.path()).unwrap();
    let path = socket_path(directory.path(), "relay");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = LocalClient::call(&path, json!(1)).await.unwrap_err();
    assert!(matches!(error, LocalError::NotRunning(_)), "{error:?}");
    let _server = LocalServer::bind(&directory, "relay").unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}
