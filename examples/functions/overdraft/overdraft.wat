;; overdraft PAYER PAYEE AMOUNT LIMIT
;;
;; Moves AMOUNT from PAYER to PAYEE. PAYER's balance may fall below zero, down to -LIMIT.
;;
;; Returns 0, or 128 BAD_AMOUNT, 129 BAD_LIMIT, 130 OVER_LIMIT.
(module
  (import "ledger" "credit" (func $credit (param $account i64) (param $amount i64)))
  (import "ledger" "debit" (func $debit (param $account i64) (param $amount i64)))
  (import "ledger" "get_balance" (func $get_balance (param $account i64) (result i64)))

  (func (export "execute")
    (param $payer i64) (param $payee i64) (param $amount i64) (param $limit i64)
    (param i64 i64 i64 i64)
    (result i32)

    (if (i64.le_s (local.get $amount) (i64.const 0))
      (then (return (i32.const 128))))
    (if (i64.lt_s (local.get $limit) (i64.const 0))
      (then (return (i32.const 129))))

    ;; What is asked is: balance - amount >= -limit. The left side may not fit into 64 bits, and
    ;; neither does balance + limit; amount - limit does, as neither of them is negative.
    (if (i64.lt_s
          (call $get_balance (local.get $payer))
          (i64.sub (local.get $amount) (local.get $limit)))
      (then (return (i32.const 130))))

    (call $credit (local.get $payer) (local.get $amount))
    (call $debit (local.get $payee) (local.get $amount))
    (i32.const 0)))
